"""Compact checkpoints: small, in pieces, near to what they were made of, and never taken for exact ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from s2tdpt.cli.app import app
from s2tdpt.errors import CheckpointError, TrainingError
from s2tdpt.models import create_model, load_weights
from s2tdpt.training import checkpoint, compact
from s2tdpt.training.compact import PIECE, compact_run, expand, squeeze
from s2tdpt.training.ema import Ema
from s2tdpt.training.engine import train
from s2tdpt.training.optim import build_optimizer
from s2tdpt.training.recipe import OptimizerRecipe, Recipe

from .interrupting import stop_at


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(recipe, out, device="cpu", progress=False, **options)


def state_of(name: str, optimizer: str) -> dict[str, dict[str, Tensor]]:
    """A model, its average and its optimiser's moments after one step of noise."""
    torch.manual_seed(0)
    model = create_model(name).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 10 ** torch.empty_like(parameter).uniform_(-6, -2)
    optimizers = build_optimizer(model, OptimizerRecipe(name=optimizer))  # pyright: ignore[reportArgumentType]
    optimizers.step()
    ema = Ema(model, 0.9)
    ema.update()
    return {"model": model.state_dict(), "optimizer": optimizers.state_dict(), "ema": ema.state_dict()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_state_of_the_papers_model_fits_into_60_mb(optimizer: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, squeeze(state_of("s2tdpt_4_384", optimizer)), {"step": 1}, piece=PIECE)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert max(sizes) <= 15_000_000
    assert sum(sizes) <= 60_000_000


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_comes_back_is_near(optimizer: str, tmp_path: Path) -> None:
    state = state_of("s2tdpt_tiny", optimizer)
    checkpoint.save(tmp_path, squeeze(state), {"step": 1}, piece=1000)
    assert len(list(tmp_path.glob("*.safetensors.*"))) > 10
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    back = expand(found.state)
    for part, tensors in state.items():
        assert list(back[part]) == list(tensors)
        for name, value in tensors.items():
            got = back[part][name]
            assert got.dtype == value.dtype
            assert got.stride() == value.stride(), name
            if value.ndim < 2:
                assert torch.equal(got, value), name
            elif name.startswith("exp_avg_sq/"):
                assert bool((got > 0).all()), name  # it is divided by
                large = value > 1e-8 * value.amax()
                assert float((got[large] / value[large]).log().abs().max()) < 0.5, name
            else:
                assert float((got - value).norm() / value.norm()) < (0.02 if part == "optimizer" else 1e-3), name


@pytest.fixture
def stopped(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Path]:
    """A run that ended unexpectedly after ten of its fifteen steps."""
    recipe = tiny.replace(checkpoint_every_minutes=0)
    with monkeypatch.context() as patch:
        stop_at(11, patch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "stopped")
    return recipe, tmp_path / "stopped"


def test_a_run_goes_on_from_a_compact_copy_and_says_so(
    stopped: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = stopped
    monkeypatch.setattr(compact, "PIECE", 5000)
    compact_run(folder, tmp_path / "carried" / "run")
    carried = tmp_path / "carried" / "run"
    assert {path.name for path in carried.iterdir()} == {"checkpoint", "recipe.yaml", "log.csv"}
    pieces = list((carried / "checkpoint").glob("step-*"))
    assert len(pieces) > 1
    assert max(piece.stat().st_size for piece in pieces) <= 5000

    exact = run(recipe, folder, resume=True)
    with pytest.warns(UserWarning, match=r"is compact: the run goes on at step 10 from rounded weights"):
        near = run(recipe, carried, resume=True)
    assert (exact["inexact_at"], near["inexact_at"]) == ([], [10])
    assert (near["steps"], near["epochs"]) == (exact["steps"], exact["epochs"]) == (15, 5)
    a, b = (load_weights(place / "model")[0].state_dict() for place in (folder, carried))
    name = "blocks.0.mlp.fc1.weight"
    assert 0 < float((a[name] - b[name]).norm() / a[name].norm()) < 0.05
    assert list((carried / "checkpoint").glob("*.safetensors.*")) == [], "pieces that no checkpoint names any more"


def test_a_damaged_piece_is_found(stopped: tuple[Recipe, Path], tmp_path: Path) -> None:
    compact_run(stopped[1], tmp_path / "copy")
    piece = next((tmp_path / "copy" / "checkpoint").glob("step-*"))
    content = bytearray(piece.read_bytes())
    content[len(content) // 2] ^= 1
    piece.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        run(stopped[0], tmp_path / "copy", resume=True)
    piece.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(stopped[0], tmp_path / "copy", resume=True)


def test_what_cannot_be_copied_is_refused(stopped: tuple[Recipe, Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        compact_run(tmp_path / "nowhere", tmp_path / "copy")
    with pytest.raises(TrainingError, match="holds a run already"):
        compact_run(stopped[1], stopped[1])


def test_a_copy_of_a_copy_is_the_copy(stopped: tuple[Recipe, Path], tmp_path: Path) -> None:
    compact_run(stopped[1], tmp_path / "one")
    compact_run(tmp_path / "one", tmp_path / "two")
    one, two = (checkpoint.load_latest(tmp_path / name / "checkpoint") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.meta == two.meta
    assert torch.equal(one.state["model"]["blocks.0.mlp.fc1.weight"], two.state["model"]["blocks.0.mlp.fc1.weight"])


def test_the_command_prints_what_goes_on(stopped: tuple[Recipe, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compact", str(stopped[1]), str(tmp_path / "copy")])
    assert result.exit_code == 0, result.output
    assert f"s2tdpt train {tmp_path}/copy/recipe.yaml --out {tmp_path}/copy --resume" in result.output
    shutil.rmtree(tmp_path / "copy")
    result = CliRunner().invoke(app, ["compact", str(tmp_path / "copy"), str(tmp_path / "other")])
    assert result.exit_code == 2
    assert "holds no checkpoint" in result.stderr
