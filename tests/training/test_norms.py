"""BatchNorm statistics measured anew at the end of a run, for the last weights and for their average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2tdpt.data import DeviceLoader, load
from s2tdpt.models import load_weights
from s2tdpt.training import checkpoint, setup
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.engine import train
from s2tdpt.training.recipe import Recipe

BATCHES = 2


@pytest.fixture
def measuring(tiny: Recipe) -> Recipe:
    return tiny.replace(norm_batches=BATCHES, eval_every=2)


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(recipe, out, device="cpu", progress=False, **options)


def means_seen(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """What each norm's input is on average over clean training images: an account of its own, by hooks."""
    sums: dict[str, Tensor] = {}

    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].movedim(1, -1) if isinstance(norm, nn.BatchNorm2d) else inputs[0]
        sums[names[norm]] = sums.get(names[norm], torch.zeros(())) + x.flatten(0, -2).mean(0)

    for norm in names:
        norm.register_forward_pre_hook(look)
    model.train()
    images = load(recipe.data.name, "train", progress=False)
    batches = iter(
        DeviceLoader(images, recipe.data.batch_size, seed=recipe.seed, shuffle=True, drop_last=True).epoch(0)
    )
    for _ in range(BATCHES):
        model(next(batches)[0])
    return {name: total / BATCHES for name, total in sums.items()}


def running_means(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removesuffix(".running_mean"): t for name, t in state.items() if name.endswith("running_mean")}


@pytest.mark.parametrize("weights", ["ema", "last"])
def test_statistics_are_those_of_clean_training_images(measuring: Recipe, tmp_path: Path, weights: str) -> None:
    run(measuring, tmp_path / "run")
    model, _ = load_weights(tmp_path / "run" / "model")
    if weights == "last":
        found = checkpoint.load_latest(tmp_path / "run" / "checkpoint")
        assert found is not None
        model.load_state_dict(found.state["model"])
    stored = {name: mean.clone() for name, mean in running_means(model.state_dict()).items()}
    expected = means_seen(model, measuring)
    assert stored.keys() == expected.keys()
    for name, mean in stored.items():
        torch.testing.assert_close(mean, expected[name], msg=name)


def test_only_statistics_differ_from_a_run_that_does_not_measure(measuring: Recipe, tmp_path: Path) -> None:
    run(measuring, tmp_path / "measured")
    run(measuring.replace(norm_batches=0), tmp_path / "plain")
    a, b = (load_weights(tmp_path / name / "model")[0].state_dict() for name in ("measured", "plain"))
    differ = {name.rpartition(".")[2] for name in a if not torch.equal(a[name], b[name])}
    assert differ == {"running_mean", "running_var", "num_batches_tracked"}


def test_looking_on_the_way_changes_nothing(measuring: Recipe, tmp_path: Path) -> None:
    run(measuring.replace(eval_every=1), tmp_path / "often")
    run(measuring.replace(eval_every=5), tmp_path / "once")
    often, once = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("often", "once"))
    assert often == once


def test_averaged_weights_are_scored_with_statistics_of_their_own(measuring: Recipe) -> None:
    parts = setup.Setup.build(measuring, Ranks(torch.device("cpu")), None, False)
    assert parts.ema is not None
    parts.ema.update()
    before = {name: t.clone() for name, t in [*parts.model.state_dict().items(), *parts.ema.state_dict().items()]}
    seen: list[dict[str, Tensor]] = []
    original = parts._score

    def score(data: setup.ImageSet) -> dict[str, Any]:
        seen.append({name: t.clone() for name, t in parts.model.state_dict().items()})
        return original(data)

    parts._score = score  # pyright: ignore[reportAttributeAccessIssue]
    parts.evaluate(measured=False)
    parts.evaluate(measured=True)
    last, averaged, last_at_end, averaged_at_end = seen
    assert not torch.equal(averaged["stem.norm.0.running_var"], before["stem.norm.0.running_var"])
    assert all(torch.equal(last[name], last_at_end[name]) for name in last)
    assert torch.equal(averaged_at_end["stem.norm.0.running_var"], before["stem.norm.0.running_var"])
    after = dict([*parts.model.state_dict().items(), *parts.ema.state_dict().items()])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_finished_run_hands_out_again_what_it_saved(
    measuring: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(measuring, tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("metrics.json", "model.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    monkeypatch.setattr(setup.Setup, "measure_norms", lambda _: pytest.fail("they are in the checkpoint"))
    again = run(measuring, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert {**again, "train_seconds": 0} == {**first, "train_seconds": 0}


def test_the_clock_leaves_time_to_measure(measuring: Recipe) -> None:
    def reserved(batches: int) -> float:
        parts = setup.Setup.build(measuring.replace(norm_batches=batches), Ranks(torch.device("cpu")), None, False)
        before = {name: t.clone() for name, t in parts.model.state_dict().items()}
        seconds = parts._norm_seconds()
        assert all(torch.equal(before[name], t) for name, t in parts.model.state_dict().items())
        return seconds

    assert reserved(0) == 0
    assert reserved(2) > 0
