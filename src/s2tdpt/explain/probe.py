"""Looking inside a model while it runs, and leaving it as it was: modes, hooks and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons import LIF


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each module's own mode is back afterwards, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call `see(name, output)` after each call of each module; what it returns, unless None, replaces the output."""
    handles = []
    try:
        for name, module in modules.items():
            hook = lambda _module, _args, output, name=name: see(name, output)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: nn.Module) -> list[Any]:
    """The model's Transformer blocks, each with `.attn`."""
    found = list(getattr(model, "blocks", ()))
    if not found or not all(hasattr(block, "attn") for block in found):
        raise InputError(f"explain: {type(model).__name__} has no `blocks` with `.attn` to look into")
    return found


def token_grid(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Rows and columns of the token grid that `model` makes of images x [..., C, H, W]."""
    stem: Any = getattr(model, "stem", None)
    if not hasattr(stem, "grid"):
        raise InputError(f"explain: {type(model).__name__} has no `stem.grid(height, width)`")
    height, width = stem.grid(x.shape[-2], x.shape[-1])
    return int(height), int(width)


def check_images(x: Tensor) -> None:
    """Refuse anything but floats [B, C, H, W] or [T, B, C, H, W] with at least one image."""
    if x.ndim not in (4, 5) or 0 in x.shape or not x.is_floating_point():
        raise InputError(
            "explain: images are floats [B, C, H, W] or [T, B, C, H, W] with at least one image, "
            f"got {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        )


def spiking_neurons(model: nn.Module) -> dict[str, nn.Module]:
    """All spiking neuron modules by name; none is an error, since then there are no spikes to show."""
    found: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, LIF)}
    if not found:
        raise InputError(f"explain: {type(model).__name__} has no spiking neurons")
    return found


def is_spiking(model: nn.Module) -> bool:
    """Whether the model has any spiking neuron."""
    return any(isinstance(module, LIF) for module in model.modules())


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """Softmax of the model's logits [B, K] in evaluation mode."""
    check_images(x)
    with evaluating(model):
        return model(x).softmax(-1)
