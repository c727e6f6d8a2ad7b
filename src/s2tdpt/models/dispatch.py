"""Which forward pass a spiking Transformer runs: module by module, or through the fused operators."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..attention import STDPAttention
from ..errors import ModelError
from ..neurons import LIF, PLIF
from ..normalisation import BatchNorm
from ..ops import availability, observe
from ..ops.charge import ChargeInput
from ..ops.stdp.limits import FEATURES, fits_tile
from .block import Block, LocalBlock, LocalMixer, SpikingMLP
from .stages import Downsample, HierarchicalStem, Stage
from .stem import Stem

if TYPE_CHECKING:
    from .transformer import SpikingTransformer

IMPLEMENTATIONS = ("auto", "plain", "fused")
NORMS = (BatchNorm, nn.BatchNorm2d)
_OURS = (Stem, HierarchicalStem, Stage, Downsample, LocalBlock, Block, LocalMixer, SpikingMLP, STDPAttention, LIF, PLIF)
_FUSED = (*_OURS, *NORMS, nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.ModuleList)


def use_fused(model: SpikingTransformer, x: Tensor) -> bool:
    """Whether this call goes through the fused operators; `ModelError` where "fused" is asked for and cannot be had."""
    if model.implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ModelError(f"implementation {model.implementation!r} is unknown: use one of {known}")
    if model.implementation == "plain" or (model.implementation == "auto" and not x.is_cuda):
        return False
    if model.implementation == "auto" and watched(model):
        return False  # hooks and listeners see each module, as they expect
    obstacle = _obstacle(model, x)
    if obstacle is None:
        return True
    if model.implementation == "fused":
        raise ModelError(f"the fused implementation is not available: {obstacle}")
    _say_once(obstacle)
    return False


def _obstacle(model: SpikingTransformer, x: Tensor) -> str | None:
    if (missing := availability.obstacle(x.is_cuda)) is not None:
        return missing
    if x.dtype == torch.float64:
        return "its membranes are float32, but the input is float64"
    if any(type(block.attn) is not STDPAttention for block in model.blocks):
        return f"attention {model.config.attention!r} has no fused kernel"
    if (unknown := unknown_part(model, _FUSED, "has no fused kernel")) is not None:
        return unknown
    model.stem.check(x)
    height, width = model.stem.grid(*x.shape[-2:])
    tokens, features = height * width, model.config.embed_dim // model.config.num_heads
    half = x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
    if features > FEATURES or not fits_tile(tokens, features, half=half):
        precision = "half precision" if half else "float32"
        return f"a head of {tokens} tokens x {features} features in {precision} does not fit into one tile"
    return None


def unknown_part(model: nn.Module, known: Collection[type[nn.Module]], trouble: str) -> str | None:
    """The first part of `model` whose class is not one of `known`, or norm that cannot be folded, in words; or None."""
    for name, module in model.named_modules():
        if name and type(module) not in known:
            return f"{name} is a {type(module).__name__}, which {trouble}"
        if isinstance(module, NORMS) and (module.running_mean is None or not module.affine):
            return f"{name} has no running statistics or no weight"
    return None


def watched(model: nn.Module) -> bool:
    """Whether a hook or listener would miss what runs inside `model`; its own hooks are called in any case."""
    if torch.compiler.is_compiling():
        return False
    if _has_any_global_hook() or observe.listening():
        return True
    return any(_hooked(module) for module in model.modules() if module is not model)


@contextmanager
def module_by_module(model: nn.Module) -> Iterator[None]:
    """Within it nothing in `model` runs fused, whatever its `implementation` says: for hooks that must see it all."""
    from .transformer import SpikingTransformer

    chosen = [(part, part.implementation) for part in model.modules() if isinstance(part, SpikingTransformer)]
    for part, _ in chosen:
        part.implementation = "plain"
    try:
        yield
    finally:
        for part, implementation in chosen:
            part.implementation = implementation


def _hooked(module: nn.Module) -> bool:
    before = [hook for hook in module._forward_pre_hooks.values() if not isinstance(hook, ChargeInput)]
    return bool(before or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


@lru_cache(maxsize=16)
def _say_once(obstacle: str) -> None:
    warnings.warn(f"running the plain implementation: {obstacle}", stacklevel=4)
