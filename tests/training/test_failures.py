"""Whatever goes wrong ends in one clear line, and loses nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s2tdpt.data import DeviceLoader
from s2tdpt.errors import CheckpointError, RecipeError, TrainingError
from s2tdpt.training import checkpoint, engine, step
from s2tdpt.training.engine import train
from s2tdpt.training.evaluate import evaluate_ranks
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.step import memory_advice

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def short(tiny: Recipe) -> Recipe:
    """Six steps in two epochs, a checkpoint after each step."""
    return tiny.replace(**{"schedule.time_steps": "1:2", "checkpoint_every_minutes": 0})


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(recipe, out, device="cpu", progress=False, **options)


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def change_batch(
    monkeypatch: pytest.MonkeyPatch, at_epoch: int, at_step: int, change: Callable[[Tensor], Tensor]
) -> None:
    """Pass the images of one training batch through `change`."""
    original = DeviceLoader.epoch

    def epoch(loader: DeviceLoader, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for number, (x, target) in enumerate(original(loader, epoch, start_step), start=start_step):
            hit = loader.shuffle and (epoch, number) == (at_epoch, at_step)
            yield (change(x) if hit else x), target

    monkeypatch.setattr(DeviceLoader, "epoch", epoch)


@pytest.mark.parametrize(
    ("model", "value", "what"),
    [("vit_tiny", float("nan"), "loss"), ("vit_tiny", float("inf"), "loss"), ("s2tdpt_tiny", float("nan"), "gradient")],
)
def test_what_is_not_finite_is_named_with_its_step_and_the_last_good_checkpoint(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, value: float, what: str
) -> None:
    """Neurons do not fire at NaN, so in a spiking model the loss stays finite."""
    change_batch(monkeypatch, 1, 1, lambda x: x * value)
    with pytest.raises(TrainingError) as caught:
        run(short.replace(**{"model.name": model}), tmp_path / "run")
    message = str(caught.value)
    path = tmp_path / "run" / "checkpoint" / "checkpoint.json"
    assert message.startswith(f"the {what} is nan at step 5 (epoch 2, T = 1); last good checkpoint: step 4, {path}")
    assert "lower optimizer.lr (now 0.02)" in message
    assert "\n" not in message
    found = checkpoint.load_latest(path.parent)
    assert found is not None
    assert found.meta["step"] == 4
    assert all(tensor.isfinite().all() for tensor in found.state["model"].values())


def test_without_a_checkpoint_the_message_says_so(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_batch(monkeypatch, 0, 1, lambda x: x * float("nan"))
    with pytest.raises(TrainingError, match=r"the gradient is nan at step 2 .*no checkpoint yet"):
        run(short.replace(checkpoint_every_minutes=100), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_weights_that_are_not_finite_are_never_saved(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the step that spoils them is still finite."""
    original = engine.Run._pause

    def spoil(run: engine.Run) -> None:
        if run.state.step == 4:
            next(run.setup.model.parameters()).data[0] = float("inf")
        original(run)

    monkeypatch.setattr(engine.Run, "_pause", spoil)
    with pytest.raises(TrainingError, match=r"a weight is not finite after step 4 .*last good checkpoint: step 3"):
        run(short, tmp_path / "run")
    found = checkpoint.load_latest(tmp_path / "run" / "checkpoint")
    assert found is not None
    assert found.meta["step"] == 3


def too_much(*_: Any, **__: Any) -> Any:
    return torch.empty(1 << 50)


def test_out_of_memory_says_what_to_lower(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_batch(monkeypatch, 0, 2, too_much)
    with pytest.raises(
        TrainingError, match=r"out of memory in training: lower data\.batch_size \(now 8, try 4\) or set"
    ):
        run(short, tmp_path / "run")


def test_out_of_memory_while_evaluating_names_the_other_batch_size(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2tdpt.training.setup.evaluate_ranks", too_much)
    with pytest.raises(TrainingError, match=r"in evaluation: lower data\.eval_batch_size \(now 5, try 3\)$"):
        run(short, tmp_path / "run")
    monkeypatch.setattr("s2tdpt.training.setup.evaluate_ranks", evaluate_ranks)
    metrics = run(short.replace(**{"data.eval_batch_size": 3}), tmp_path / "run", resume=True)
    assert metrics["steps"] == 6


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")]
)
def test_every_kind_of_out_of_memory_is_known(short: Recipe, error: Exception) -> None:
    with pytest.raises(TrainingError, match=r"try 4"), memory_advice(short, "training"):
        raise error


def test_other_errors_are_left_alone(short: Recipe) -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(short, "training"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(
    short: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = short.replace(checkpoint_every_minutes=100)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        change_batch(patch, 0, 1, lambda x: os.kill(os.getpid(), number) or x)
        with pytest.raises(TrainingError, match=r"interrupted; step 2 is saved in .*run: go on with --resume"):
            run(recipe, tmp_path / "run")
    assert "interrupted: the step under way is finished and saved; once more ends at once\n" in capfd.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    run(recipe, tmp_path / "run", resume=True)
    run(recipe, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_run_says_what_begins(short: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = short.replace(precision="bfloat16", max_minutes=5.0)
    train(recipe, tmp_path / "run", device="cpu")
    said = capfd.readouterr().err
    assert f"tiny: s2tdpt_tiny on {short.data.name}, seed 0, T:epochs 1:2 within 5 minutes, cpu in bfloat16" in said
    assert "--set precision=float32" in said


def test_an_evaluation_longer_than_the_clock_is_refused(short: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"max_minutes: 0.0001 is not enough, .* on cpu: --set max_minutes=null"):
        run(short.replace(max_minutes=0.0001), tmp_path / "run")


def test_a_second_interrupt_ends_at_once(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return x

    change_batch(monkeypatch, 0, 1, twice)
    with pytest.raises(KeyboardInterrupt):
        run(short, tmp_path / "run")


def test_a_folder_with_a_run_is_not_overwritten(short: Recipe, tmp_path: Path) -> None:
    run(short, tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"run holds a run already: go on with --resume, or choose another folder"):
        run(short.replace(seed=1), tmp_path / "run")
    assert weights(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer.lr", 0.01, r"optimizer\.lr \(0\.02, not 0\.01\)"),
        ("augment.flip", False, r"augment\.flip \(True, not False\)"),
        ("model.options.embed_dim", 32, r"model\.options\.embed_dim \(16, not 32\)"),
        ("schedule.time_steps", "1:3", r"schedule\.time_steps \('1:2', not '1:3'\)"),
    ],
)
def test_another_recipe_is_refused_by_the_key_that_differs(
    short: Recipe, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    stop_after(1, short, tmp_path / "run")
    with pytest.raises(TrainingError, match=rf"was started by a recipe with another {said}"):
        run(short.replace(**{key: value}), tmp_path / "run", resume=True)


def stop_after(steps: int, recipe: Recipe, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        change_batch(patch, 0, steps - 1, lambda x: os.kill(os.getpid(), signal.SIGTERM) or x)
        with pytest.raises(TrainingError, match="interrupted"):
            run(recipe, out)


def test_cadence_and_clock_may_change(short: Recipe, tmp_path: Path) -> None:
    stop_after(2, short, tmp_path / "run")
    changed = short.replace(max_minutes=50, eval_every=2, checkpoint_every_minutes=100)
    assert run(changed, tmp_path / "run", resume=True)["steps"] == 6
    assert Recipe.from_dict(json.loads((tmp_path / "run" / "model.json").read_text())["recipe"]) == changed


def test_other_data_is_refused(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(1, short, tmp_path / "run")
    monkeypatch.setattr("s2tdpt.data.folder.SUFFIXES", {".jpg", ".png"})
    original = DeviceLoader.__init__

    def fewer(loader: DeviceLoader, data: Any, batch_size: int, **options: Any) -> None:
        original(loader, data.limit(16), batch_size, **options)

    monkeypatch.setattr(DeviceLoader, "__init__", fewer)
    with pytest.raises(CheckpointError, match=r"a run with 3 steps an epoch, not 2: resume with the same data"):
        run(short, tmp_path / "run", resume=True)


def test_a_finished_run_returns_its_metrics(short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = run(short, tmp_path / "run")
    monkeypatch.setattr(step.TrainStep, "__call__", None)
    assert run(short, tmp_path / "run", resume=True) == metrics


def test_a_damaged_checkpoint_costs_a_step_and_changes_nothing(short: Recipe, tmp_path: Path) -> None:
    stop_after(3, short, tmp_path / "run")
    file = max((tmp_path / "run" / "checkpoint").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="going back to the previous checkpoint, step 2"):
        run(short, tmp_path / "run", resume=True)
    run(short, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        ("open_run", "recipe.yaml"),
        ("_end_epoch", "log.csv"),
        ("_save", "a checkpoint"),
        ("_hand_out", "model.safetensors"),
    ],
)
def test_a_full_disk_ends_the_run_in_one_line_and_resuming_mends_it(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, what: str
) -> None:
    monkeypatch.setattr(engine, "Board", Silent)
    owner: Any = engine.folder if stage == "open_run" else engine.Run
    original = getattr(owner, stage)

    def with_a_full_disk(*arguments: Any) -> Any:
        with disk_with_room_for(100):
            return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, stage, with_a_full_disk)
        with pytest.raises(CheckpointError, match=rf"{what}.*File too large") as caught:
            run(short.replace(checkpoint_every_minutes=100), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    run(short, tmp_path / "run", resume=True)
    run(short, tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


class Silent:
    """Instead of TensorBoard, which writes from a thread of its own."""

    def __init__(self, *_: Any) -> None: ...

    def add(self, row: Any) -> None: ...

    def close(self) -> None: ...
