"""Counts the operations of anybody's model in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.dispatch import module_by_module
from .origins import tensors
from .recorder import Recorder
from .report import EnergyReport


def count(
    module: nn.Module,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    batch_size: int | None = None,
    exact: bool = False,
) -> EnergyReport:
    """Run `module` once in evaluation mode and count its operations per image, layer by layer.

    `inputs`: one tensor, a sequence of positional or a mapping of keyword arguments. The first tensor says how many
    images it holds: B of [T, B, C, H, W] (five dimensions), the first dimension of any other shape; pass `batch_size`
    where that is wrong. `exact=True` adds the event-by-event counter. Training flags are put back and hooks removed,
    also after an error; a model that keeps state between calls must be reset by its owner, before and after.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"energy: a torch.nn.Module can be counted, not {type(module).__name__}")
    args = (inputs,) if isinstance(inputs, Tensor) else () if isinstance(inputs, Mapping) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    images = _images(next(tensors((args, kwargs)), None), batch_size)
    recorder = Recorder((args, kwargs), images, exact)
    with torch.no_grad(), _evaluating(module), module_by_module(module), recorder.attached(module):
        module(*args, **kwargs)
    return recorder.report(type(module).__name__)


def _images(first: Tensor | None, batch_size: int | None) -> int:
    if first is None:
        raise InputError("energy: there is no tensor among the inputs")
    if batch_size is not None:
        images = batch_size
    elif first.ndim == 0:
        images = 1
    else:
        images = first.shape[1 if first.ndim == 5 else 0]
    if images < 1:
        raise InputError(f"energy: at least one image is needed, got {images} (input of shape {tuple(first.shape)})")
    return images


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [(part, part.training) for part in module.modules()]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide a whole Transformer layer in one operator
    try:
        for part, _ in training:
            part.training = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for part, flag in training:
            part.training = flag
