"""A resume state that is small enough to carry: two fifths of the size, for the price of exactness."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2tdpt.errors import CheckpointError, TrainingError
from s2tdpt.models.weights import best_scale
from s2tdpt.training import checkpoint, folder

PIECE = 14_000_000
"""Bytes of one file at most."""
COMPACT = "compact"
_LEVELS, _SCALE, _ROOT = "__levels__", "scale", "root"
_SMALLEST, _LARGEST = 2.0**-9, 448.0  # of float8_e4m3fn


def compact_run(run: Path, out: Path) -> int:
    """Write the run's last checkpoint, made small, with its recipe and log into the new folder `out`; bytes written.

    `train(..., resume=True)` goes on from there: not to the very weights that the run itself would have reached.
    Raises `TrainingError` where `run` has no checkpoint or `out` holds a run, `CheckpointError` for damage.
    """
    found = checkpoint.load_latest(run / folder.CHECKPOINT)
    if found is None:
        raise TrainingError(f"{run} holds no checkpoint: name the folder of a run")
    if any((out / name).exists() for name in (folder.CHECKPOINT, folder.LOG, folder.METRICS)):
        raise TrainingError(f"{out} holds a run already: choose another folder")
    to = out / folder.CHECKPOINT
    checkpoint.save(to, squeeze(found.state), {**found.meta, COMPACT: True}, piece=PIECE)
    try:
        for name in (folder.RECIPE, folder.LOG):
            if (run / name).exists():
                shutil.copyfile(run / name, out / name)
    except OSError as error:
        raise CheckpointError(f"cannot write into {out} ({error.strerror or error}): free some space") from error
    return sum(file.stat().st_size for file in to.iterdir())


def squeeze(state: Mapping[str, Any]) -> dict[str, Any]:
    """A run's state with matrices and kernels in half precision, their moments in 8 bits; vectors stay as they are."""
    return {
        part: {name: _squeezed(part, name, value) for name, value in tensors.items()} for part, tensors in state.items()
    }


def expand(state: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `squeeze`, as far as there is one; any other state comes back as it is."""
    return {part: {name: _expanded(value) for name, value in tensors.items()} for part, tensors in state.items()}


def _squeezed(part: str, name: str, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim < 2 or not value.is_floating_point():
        return value
    if part != "optimizer":
        return value.half()
    if name.startswith("exp_avg_sq/"):  # divided by, and of many magnitudes: 8 bits with an exponent, never 0
        root = value.sqrt()
        scale = _column(root.flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST, value)
        return {_LEVELS: (root / scale).clamp_min(_SMALLEST).to(torch.float8_e4m3fn), _SCALE: scale, _ROOT: True}
    scale = _column(best_scale(value.flatten(1)), value)
    return {_LEVELS: (value / scale).round().clamp(-127, 127).to(torch.int8), _SCALE: scale, _ROOT: False}


def _expanded(value: Any) -> Any:
    if isinstance(value, Mapping) and _LEVELS in value:
        restored = value[_LEVELS].float() * value[_SCALE]
        return restored.square() if value[_ROOT] else restored
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _column(scale: Tensor, like: Tensor) -> Tensor:
    """One number a row of `like`."""
    return scale.view(-1, *(1,) * (like.ndim - 1))
