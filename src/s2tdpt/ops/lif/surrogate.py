"""The spike Θ(u) and the surrogate gradients that stand for its derivative."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError

DEFAULT_ALPHA = {"sigmoid": 4.0, "atan": 2.0}


def derivative(u: Tensor, surrogate: str, alpha: float) -> Tensor:
    """dS/du at u = v − v_threshold: α σ(αu)(1 − σ(αu)), or (α/2) / (1 + (π/2 · αu)²)."""
    if surrogate == "sigmoid":
        sigma = torch.sigmoid(alpha * u)
        return alpha * sigma * (1 - sigma)
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u).square())


class Spike(torch.autograd.Function):
    """Θ(u), with Θ(0) = 1, whose backward is the surrogate's derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate, ctx.alpha = surrogate, alpha
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        return grads[0] * derivative(u, ctx.surrogate, ctx.alpha), None, None


def resolve(surrogate: str, alpha: float | None) -> float:
    """The sharpness α to use; `InputError` for an unknown surrogate."""
    if surrogate not in DEFAULT_ALPHA:
        raise InputError(f"surrogate {surrogate!r} is unknown: use one of {', '.join(DEFAULT_ALPHA)}")
    return DEFAULT_ALPHA[surrogate] if alpha is None else float(alpha)
