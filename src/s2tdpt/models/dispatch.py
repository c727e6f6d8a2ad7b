"""Which forward pass a spiking Transformer runs: module by module, or through the fused operators."""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attention import STDPAttention
from ..errors import ModelError
from ..ops import observe

if TYPE_CHECKING:
    from .transformer import SpikingTransformer

IMPLEMENTATIONS = ("auto", "plain", "fused")
MAX_TOKENS = 128
"""The fused attention holds a head's tokens in one tile."""


def use_fused(model: SpikingTransformer, x: Tensor) -> bool:
    """Whether this call goes through the fused operators; `ModelError` where "fused" is asked for and cannot be had."""
    if model.implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ModelError(f"implementation {model.implementation!r} is unknown: use one of {known}")
    if model.implementation == "plain" or (model.implementation == "auto" and not x.is_cuda):
        return False
    if model.implementation == "auto" and _watched(model):
        return False  # hooks and listeners see each module, as they expect
    obstacle = _obstacle(model, x)
    if obstacle is None:
        return True
    if model.implementation == "fused":
        raise ModelError(f"the fused implementation is not available: {obstacle}")
    _say_once(obstacle)
    return False


def _obstacle(model: SpikingTransformer, x: Tensor) -> str | None:
    if not _has_triton():
        return "Triton is not installed"
    if not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return "it needs a CUDA device"
    if x.dtype == torch.float64:
        return "its membranes are float32, but the input is float64"
    if any(type(block.attn) is not STDPAttention for block in model.blocks):
        return f"attention {model.config.attention!r} has no fused kernel"
    height, width = model.stem.grid(*x.shape[-2:])
    if height * width > MAX_TOKENS:
        return f"{height * width} tokens are more than the {MAX_TOKENS} that one tile holds"
    return None


def _watched(model: nn.Module) -> bool:
    if torch.compiler.is_compiling():
        return False
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    return hooked or observe.listening()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=16)
def _say_once(obstacle: str) -> None:
    warnings.warn(f"running the plain implementation: {obstacle}", stacklevel=4)
