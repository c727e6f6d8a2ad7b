"""STDP attention: spike-timing-dependent plasticity between query and key spikes weighs the values (eqs 17-23)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import InputError
from .. import availability, observe
from . import event, reference, table
from .event import EventCounts
from .limits import FEATURES
from .window import StdpWindow

__all__ = ["EventCounts", "StdpWindow", "stdp_attention", "stdp_event_counts", "stdp_weights"]

Implementation = Literal["auto", "dense", "table", "event", "triton"]


def _triton(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    from .triton import attention  # Triton is there only where there is a GPU

    return attention(query, key, value, window, scale)


_IMPLEMENTATIONS = {
    "dense": reference.attention,
    "table": table.attention,
    "event": event.attention,
    "triton": _triton,
}


def stdp_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: StdpWindow,
    *,
    scale: float = 1.0,
    implementation: Implementation = "auto",
    check: bool = False,
) -> Tensor:
    """out_i = scale · Σ_j w(t_Q(i) − t_K(j)) V_j: eqs 17-23 before the neuron, on binary spikes (bool or float).

    query [..., Nq, D_h], key [..., Nk, D_h], value [..., Nk, D_v]; with a per-head window the heads are dimension -3.
    Returns [..., Nq, D_v] in value's dtype (float32 for bool). `"dense"` is the equation as written; `"table"` is exact
    too and linear in N; `"event"` handles V's spikes one by one (no gradient); `"triton"` runs on a GPU. `check=True`
    raises `InputError` on spikes that are not 0 or 1. Gradients flow through the counts; at ties ∂w/∂Δt = +f/τ.
    """
    _check_shapes(query, key, value, window)
    if check:
        for name, spikes in (("query", query), ("key", key), ("value", value)):
            _check_binary(name, spikes)
    value = _as_float(value)
    query, key = query.to(value.dtype), key.to(value.dtype)  # exact: spikes are 0 or 1
    obstacle = _triton_obstacle(query, value)
    if implementation == "auto":
        short = query.shape[-2] * key.shape[-2] <= 64 * 64
        implementation = "triton" if value.is_cuda and obstacle is None else "dense" if short else "table"
    if implementation not in _IMPLEMENTATIONS:
        known = ", ".join(["auto", *_IMPLEMENTATIONS])
        raise InputError(f"stdp_attention: implementation {implementation!r} is unknown: use one of {known}")
    if implementation == "event" and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise InputError("stdp_attention: 'event' is for inference: use torch.no_grad(), or 'table' to train")
    if implementation == "triton" and obstacle is not None:
        raise InputError(f"stdp_attention: 'triton' is not available: {obstacle}")
    info = {"query": query, "key": key, "value": value, "window": window, "scale": scale}
    run = _IMPLEMENTATIONS[implementation]
    return observe.call(
        "stdp_attention", {**info, "implementation": implementation}, lambda: run(query, key, value, window, scale)
    )


def stdp_weights(query: Tensor, key: Tensor, window: StdpWindow) -> Tensor:
    """Attention weights w [..., Nq, Nk] of eq. 22, for inspection; arguments as for `stdp_attention`."""
    _check_shapes(query, key, key, window)
    return reference.weights(_as_float(query), _as_float(key), window)


def stdp_event_counts(query: Tensor, key: Tensor, value: Tensor) -> EventCounts:
    """Additions and table reads that `implementation="event"` performs on these spikes, over all leading dimensions."""
    _check_shapes(query, key, value, StdpWindow())
    return event.event_counts(query, key, value)


def _triton_obstacle(query: Tensor, value: Tensor) -> str | None:
    if (missing := availability.obstacle(value.is_cuda)) is not None:
        return missing
    if value.dtype == torch.float64:
        return "it computes in float32, but the spikes are float64"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > FEATURES:
        return f"it takes up to {FEATURES} features, as many of V as of Q: got {query.shape[-1]} and {value.shape[-1]}"
    return None


def _as_float(spikes: Tensor) -> Tensor:
    return spikes if spikes.is_floating_point() else spikes.to(torch.get_default_dtype())


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise InputError(f"stdp_attention: spikes need at least [tokens, features], got {shapes}")
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        raise InputError(f"stdp_attention: there are no tokens or features to attend to: {shapes}")
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise InputError(f"stdp_attention: leading dimensions differ: {shapes}")
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise InputError(f"stdp_attention: need query [..., Nq, D], key [..., Nk, D], value [..., Nk, Dv]: {shapes}")
    heads = window.num_heads
    if heads is not None and (query.ndim < 3 or query.shape[-3] != heads):
        raise InputError(f"stdp_attention: the window has {heads} heads, dimension -3 of the spikes has not: {shapes}")


def _check_binary(name: str, spikes: Tensor) -> None:
    if not bool(((spikes == 0) | (spikes == 1)).all()):
        kind = "NaN" if bool(spikes.isnan().any()) else "values other than 0 and 1"
        raise InputError(f"stdp_attention: {name} holds {kind}, but spikes are binary: put a spiking neuron before it")
