"""Leaky integrate-and-fire neurons over time (eqs 7-9)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import observe
from . import reference
from . import surrogate as surrogates

__all__ = ["lif"]


def lif(
    current: Tensor,
    v: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str = "sigmoid",
    alpha: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Spikes [T, ...] (0 or 1, in current's dtype) and the last membrane [...] of input current [T, ...].

    v ← v + (x − (v − v_reset))/tau (`decay_input`, else x undecayed); spike = Θ(v − v_threshold), Θ(0) = 1; then
    v ← v_reset where it fired, or v − v_threshold with the soft reset `v_reset=None`. tau in steps, a number or a 0-d
    tensor; v is the membrane to start from (None: at rest). Half-precision input is integrated in float32.
    Surrogates: "sigmoid" (α 4), "atan" (α 2).
    """
    alpha = surrogates.resolve(surrogate, alpha)
    if current.ndim < 1 or current.shape[0] == 0:
        raise InputError(f"lif: the current needs at least one time step [T, ...], got {tuple(current.shape)}")
    if not isinstance(tau, Tensor) and tau < 1:
        raise InputError(f"lif: tau must be at least 1 step, got {tau}")
    if v is None:
        v = torch.full_like(current[0], 0.0 if v_reset is None else v_reset, dtype=_membrane_dtype(current))
    elif v.shape != current.shape[1:]:
        raise InputError(f"lif: the membrane {tuple(v.shape)} does not fit the current {tuple(current.shape)} [T, ...]")
    start = v

    def body() -> tuple[Tensor, Tensor]:
        spikes, last = reference.lif(
            current.to(start.dtype),
            start,
            tau=tau,
            v_threshold=v_threshold,
            v_reset=v_reset,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
        return spikes.to(current.dtype), last

    return observe.call("lif", {"current": current, "v_threshold": v_threshold}, body)


def _membrane_dtype(current: Tensor) -> torch.dtype:
    # The ulp of bfloat16 below 1.0 is 0.004: a membrane kept in half precision would be biased at the threshold.
    return torch.float64 if current.dtype == torch.float64 else torch.float32
