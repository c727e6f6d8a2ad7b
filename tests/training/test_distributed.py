"""Two processes on the CPU, started by torchrun, do what one would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from s2tdpt.errors import TrainingError
from s2tdpt.models import create_model, save_weights
from s2tdpt.training.distributed import Ranks, join
from s2tdpt.training.recipe import Recipe

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from s2tdpt.data import load
from s2tdpt.errors import S2tdptError, TrainingError
from s2tdpt.training.distributed import join
from s2tdpt.training.engine import train
from s2tdpt.training.evaluate import evaluate, evaluate_ranks
from s2tdpt.training.optim import build_optimizer
from s2tdpt.training.recipe import load_recipe
from s2tdpt.training.step import Loss, TrainStep

recipe, base = load_recipe(sys.argv[1]), Path(sys.argv[2])
found = {}

class Net(nn.Module):
    # No BatchNorm, so that halves of a batch add up; one layer that is never used, as in a control without Q and K.
    def __init__(self):
        super().__init__()
        self.body, self.spare, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())

def net():
    torch.manual_seed(0)
    return Net()

def work():
    with join("cpu") as ranks:
        found["world"] = [ranks.rank, ranks.world_size]
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(4, 8, 3, 2, 2, generator=generator)
        y = torch.randint(0, 3, (4, 8), generator=generator)
        model, alone = net(), net()
        optimizers = build_optimizer(model, recipe.optimizer)
        step = TrainStep(model, optimizers, recipe, ranks)
        reference = build_optimizer(alone, recipe.optimizer)
        loss = Loss(alone, ranks.device, "float32")
        off, losses = [], []
        for images, labels in zip(x, y):
            halves = []
            for rank in range(2):
                reference.zero_grad()
                value = loss(images[rank::2], labels[rank::2])
                value.backward()
                halves.append({n: p.grad.clone() for n, p in alone.named_parameters() if p.grad is not None})
                losses.append(value.item())
            mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
            for name, parameter in alone.named_parameters():
                parameter.grad = mean.get(name)
            kept, update = {}, optimizers.step
            def keep():
                kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
                update()
            optimizers.step = keep
            step(images[ranks.rank::2], labels[ranks.rank::2])
            optimizers.step = update
            nn.utils.clip_grad_norm_(alone.parameters(), recipe.optimizer.clip_grad_norm)
            off.append(max(float((kept[n] - p.grad).abs().max()) for n, p in alone.named_parameters() if n in mean))
            reference.step()
        found["gradients_off"] = off
        found["weights_off"] = max(float((a - b).abs().max()) for a, b in zip(model.parameters(), alone.parameters()))
        found["losses"] = [value for value, _ in step.take_report()]
        found["halves"] = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2])]

        test_set = load(recipe.data.name, "test", progress=False)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        found["shared"] = evaluate_ranks(model, test_set, ranks, batch_size=5, precision="float32")
        found["single"] = evaluate(model, test_set, device="cpu", batch_size=5)

        def fail():
            raise TrainingError("the disk is full")
        try:
            ranks.on_main(fail)
        except S2tdptError as error:
            found["failure"] = str(error)

        found["first"] = train(recipe, base / "run", device="cpu", progress=False)
        found["again"] = train(recipe, base / "run", device="cpu", progress=False, resume=True)
    return ranks.rank

rank = work()  # all that knows the other process is gone before this one ends
(base / f"rank{rank}.json").write_text(json.dumps(found))
os._exit(0)  # a thread of gloo's may still run, and taking Python down around it aborts
"""


@pytest.fixture(scope="module")
def two(pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    geometry = {"embed_dim": 8, "depth": 1, "stem_channels": [2, 2, 2]}
    save_weights(create_model("s2tdpt_tiny", num_classes=2, **geometry), folder / "first", meta={})
    recipe = Recipe.from_dict(
        {
            "name": "two",
            "model": {"name": "s2tdpt_tiny", "options": geometry},
            "data": {"name": f"folder:{pictures}", "batch_size": 4, "eval_batch_size": 5},
            "augment": {"flip": True},
            "optimizer": {"lr": 0.01, "clip_grad_norm": 0.5},
            "schedule": {"time_steps": "1:2,2:1"},
            "ema_decay": 0.9,
            "norm_batches": 2,
            "initial_weights": str(folder / "first.safetensors"),
            "distill": {"teacher": str(teacher), "views": 1},
            "spike_cost": 0.1,
            "checkpoint_every_minutes": 0,
        }
    )
    recipe.save(folder / "recipe.yaml")
    (folder / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(folder / "worker.py"), str(folder / "recipe.yaml"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_gradients_are_the_mean_of_the_halves(two: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two):
        assert found["world"] == [rank, 2]
        assert max(found["gradients_off"]) < 1e-7
        assert found["weights_off"] < 1e-6
        assert found["losses"] == pytest.approx(found["halves"], rel=1e-6)


@pytest.mark.slow
def test_an_evaluation_is_shared_out_and_summed(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["shared"] == pytest.approx(found["single"], rel=1e-6)
        assert found["shared"]["n"] == 12


@pytest.mark.slow
def test_an_error_of_rank_0_ends_the_others_too(two: list[dict[str, Any]]) -> None:
    assert [found["failure"] for found in two] == [
        "the disk is full",
        "rank 0 could not go on; its message says why",
    ]


@pytest.mark.slow
def test_a_whole_run_is_written_by_rank_0_and_known_to_both(two: list[dict[str, Any]]) -> None:
    main, other = two
    assert main["first"]["steps"] == 9
    assert main["first"]["hardware"]["count"] == 2
    assert main["first"]["initial_weights"]["source"].endswith("first.safetensors")
    assert {key: main["first"][key] for key in ("top1", "loss", "ema_top1")} == {
        key: other["first"][key] for key in ("top1", "loss", "ema_top1")
    }
    assert main["again"] == main["first"]
    assert other["again"] == {}


def test_a_process_alone_needs_nobody() -> None:
    with join("cpu") as ranks:
        assert ranks == Ranks(torch.device("cpu"), 0, 1)
        assert ranks.sum([1.0, 2.0]) == [1.0, 2.0]
        assert ranks.from_main([3.0]) == [3.0]
        assert ranks.on_main(lambda: 4) == 4
        module = torch.nn.Linear(1, 1)
        assert ranks.wrap(module) is module

        def fail() -> None:
            raise TrainingError("no")

        with pytest.raises(TrainingError, match="no"):
            ranks.on_main(fail)
