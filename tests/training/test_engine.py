"""A whole run on tiny pictures: what it writes, and that each part of the recipe has its effect."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from s2tdpt.data import ImageSet, load
from s2tdpt.errors import ModelError, RecipeError
from s2tdpt.models import load_weights
from s2tdpt.training import engine, setup, step
from s2tdpt.training.engine import train
from s2tdpt.training.evaluate import evaluate
from s2tdpt.training.logging import Progress, clock
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.step import reestimate_batch_norm


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(recipe, out, device="cpu", progress=False, **options)


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "log.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_weights(out / "model")[0].state_dict()


def test_a_run_leaves_weights_log_and_metrics(tiny: Recipe, tmp_path: Path) -> None:
    metrics = run(tiny, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert (metrics["n"], metrics["steps"], metrics["epochs"], metrics["time_steps"]) == (12, 15, 5, 2)
    assert metrics["evaluated_on"] == "test"
    assert metrics["weights"] == "ema"
    assert metrics["top1"] == metrics["ema_top1"]
    assert 0 < metrics["mean_firing_rate"] < 1
    assert len(metrics["attention_firing_rate"]) == 1
    log = rows(tmp_path / "run")
    assert [row["epoch"] for row in log] == ["1", "2", "3", "4", "5"]
    assert [row["time_steps"] for row in log] == ["1", "1", "1", "2", "2"]
    assert all(float(row["train_loss"]) > 0 and row["test_top1"] and row["ema_top1"] for row in log)
    best = max(float(row["ema_top1"]) for row in log)
    assert metrics["best_epoch_top1"] == best
    assert float(log[metrics["best_epoch"] - 1]["ema_top1"]) == best
    assert Recipe.from_dict(json.loads((tmp_path / "run" / "model.json").read_text())["recipe"]) == tiny
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_without_tensorboard_a_run_just_has_none(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(tiny, tmp_path / "run")["epochs"] == 5
    assert len(rows(tmp_path / "run")) == 5
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_the_exported_weights_score_what_the_metrics_say(tiny: Recipe, tmp_path: Path) -> None:
    metrics = run(tiny, tmp_path / "run")
    model, card = load_weights(tmp_path / "run" / "model")
    test_set = load(tiny.data.name, "test", progress=False)
    scores = evaluate(model, test_set, device="cpu", batch_size=5)
    assert {key: scores[key] for key in ("top1", "top5", "loss", "n")} == {key: metrics[key] for key in scores}
    assert card["metrics"]["top1"] == metrics["top1"]
    assert card["data"]["classes"] == ["bright", "dark"]
    assert card["data"]["mean"] == list(test_set.mean)
    assert card["data"]["image_size"] == [8, 8]
    assert model.time_steps == 2


def test_learning_happens(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(**{"schedule.time_steps": "2:30", "augment": {}, "optimizer.name": "adamw", "eval_every": 30})
    metrics = run(recipe.replace(**{"optimizer.lr": 0.01, "label_smoothing": 0.0}), tmp_path / "run")
    log = rows(tmp_path / "run")
    assert float(log[-1]["train_loss"]) < 0.5 * float(log[0]["train_loss"])
    assert metrics["epochs"] == 30
    assert [row["test_top1"] for row in log[:-1]] == [""] * 29
    assert log[-1]["test_top1"]


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(tiny: Recipe, tmp_path: Path) -> None:
    short = tiny.replace(**{"schedule.time_steps": "1:1"})
    torch.manual_seed(1)
    run(short, tmp_path / "a")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    run(short.replace(deterministic=True), tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    run(short.replace(seed=1), tmp_path / "c")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_without_an_average_the_last_weights_are_handed_out(tiny: Recipe, tmp_path: Path) -> None:
    short = tiny.replace(**{"schedule.time_steps": "1:1"})
    averaged, last = run(short, tmp_path / "a"), run(short.replace(ema_decay=0.0), tmp_path / "b")
    assert (averaged["weights"], last["weights"]) == ("ema", "last")
    assert last["ema_top1"] is None
    assert last["top1"] == last["last_epoch_top1"]
    assert not torch.equal(weights(tmp_path / "a")["head.weight"], weights(tmp_path / "b")["head.weight"])


def test_held_out_training_images_stand_in_for_the_test_set(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []

    def spying_load(name: str, split: str, **options: Any) -> ImageSet:
        splits.append(split)
        return load(name, split, **options)

    monkeypatch.setattr(setup, "load", spying_load)
    metrics = run(tiny.replace(**{"data.holdout": 8, "schedule.time_steps": "1:1"}), tmp_path / "run")
    assert metrics["evaluated_on"] == "holdout"
    assert metrics["n"] == 8
    assert metrics["steps"] == 2  # 16 of the 24 images are left to train on
    assert "holdout_top1" in rows(tmp_path / "run")[0]
    assert splits == ["train"]


def test_the_ann_twin_trains_too(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(**{"model.name": "vit_tiny", "schedule.time_steps": "1:1"})
    metrics = run(recipe, tmp_path / "run")
    assert metrics["attention_firing_rate"] == []
    assert metrics["mean_firing_rate"] is None
    with pytest.raises(ModelError, match="one time step"):
        run(recipe.replace(**{"schedule.time_steps": "4:1"}), tmp_path / "other")


def test_a_run_that_never_began_can_be_repeated(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is unknown"):
        run(tiny.replace(**{"model.name": "s2tdpt_tin"}), tmp_path / "run")
    assert run(tiny.replace(**{"schedule.time_steps": "1:1"}), tmp_path / "run")["steps"] == 3


class Recorder:
    """Wraps a function and keeps its results."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.results = function, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.results.append(self.function(*arguments, **options))
        return self.results[-1]


def test_a_new_number_of_steps_restarts_the_average_and_the_statistics(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[tuple[int, int]] = []
    restarts: list[int] = []

    def spy(model: nn.Module, *arguments: Any) -> None:
        reestimate_batch_norm(model, *arguments)
        norm = model.get_submodule("blocks.0.mlp.norm1")
        at.append((model.time_steps, int(norm.num_batches_tracked)))  # pyright: ignore[reportArgumentType]

    def restart(ema: setup.Ema) -> None:
        restarts.append(ema.updates)
        original(ema)

    original = setup.Ema.restart
    monkeypatch.setattr(engine, "reestimate_batch_norm", spy)
    monkeypatch.setattr(setup.Ema, "restart", restart)
    run(tiny.replace(**{"schedule.time_steps": "1:2,1:1,2:1"}), tmp_path / "run")
    assert at == [(2, 3)]  # once, from T = 1 to T = 2, over the three batches there are
    assert restarts == [9]


class FakeTime:
    """A clock that goes on by `tick` seconds whenever somebody looks."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def test_the_clock_ends_the_run_after_every_phase(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTime(0.1)
    monkeypatch.setattr(engine, "time", fake)
    monkeypatch.setattr(setup, "time", fake)
    said: list[str] = []
    monkeypatch.setattr(engine.Progress, "say", lambda _, text: said.append(text))
    recipe = tiny.replace(**{"schedule.time_steps": "1:300,2:50", "max_minutes": 0.3, "eval_every": 50})
    metrics = run(recipe, tmp_path / "run")
    log = rows(tmp_path / "run")
    left_out = 300 - sum(row["time_steps"] == "1" for row in log)
    assert f"max_minutes ends T=1 here, {left_out} of its epochs are left out" in said
    assert {row["time_steps"] for row in log} == {"1", "2"}
    assert 0 < metrics["steps"] < 3 * 350
    assert int(log[-1]["epoch"]) > 300  # epochs keep their number in the plan
    assert metrics["epochs"] == len(log) < 350
    assert 15 < metrics["train_seconds"] <= 18
    assert float(log[-1]["lr"]) < 0.05 * recipe.optimizer.lr  # the schedule came to its end, not only the clock
    assert log[-1]["test_top1"]


def test_max_minutes_shorter_than_the_evaluation_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="max_minutes"):
        run(tiny.replace(max_minutes=0.001), tmp_path / "run")


def test_losses_are_fetched_only_now_and_then(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = Recorder(step.TrainStep.take_report)
    monkeypatch.setattr(step.TrainStep, "take_report", lambda train_step: fetches(train_step))
    monkeypatch.setattr(step, "SYNC_EVERY", 4)
    run(tiny.replace(**{"schedule.time_steps": "1:2", "data.batch_size": 2, "eval_every": 2}), tmp_path / "run")
    sizes = [len(report) for report in fetches.results]
    assert sum(sizes) == 24
    assert max(sizes) == 4
    log = rows(tmp_path / "run")
    flat = [loss for report in fetches.results for loss, _ in report]
    assert float(log[0]["train_loss"]) == sum(flat[:12]) / 12
    assert float(log[1]["train_loss"]) == pytest.approx(sum(flat[12:]) / 12, rel=1e-12)


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeTime(10.0)
    monkeypatch.setattr("s2tdpt.training.logging.time", fake)
    progress = Progress(100, 0, enabled=True)
    for _ in range(6):
        progress.update(1, "epoch 1/2", {"loss": "0.5"})
    progress.say("the end")
    progress.close()
    silent = Progress(100, 0, enabled=False)
    silent.update(1, "epoch", {})
    silent.say("nothing")
    assert capsys.readouterr().err.splitlines() == ["epoch 1/2  loss 0.5"] * 2 + ["the end"]
    assert clock(125.9) == "2:05"


def test_the_implementation_is_the_recipe_s(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs a CUDA device"):
        run(tiny.replace(implementation="fused"), tmp_path / "fused")
    twin = {"model.name": "vit_tiny", "schedule.time_steps": "1:1"}
    with pytest.raises(RecipeError, match="implementation"):
        run(tiny.replace(implementation="plain", **twin), tmp_path / "twin")
    assert run(tiny.replace(implementation="plain"), tmp_path / "plain")["steps"] == 15
