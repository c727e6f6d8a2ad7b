"""The leaky integrate-and-fire neuron as the field writes it: the truth that every kernel is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .surrogate import Spike


def charge(current: Tensor, v: Tensor, tau: float | Tensor, v_reset: float | None, decay_input: bool) -> Tensor:
    """The membrane v one step later, eq. 7, before the threshold is applied."""
    rest = 0.0 if v_reset is None else v_reset
    return v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current


def lif_step(
    current: Tensor,
    v: Tensor,
    *,
    tau: float | Tensor,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """One step, eqs 7-9: charge, fire, reset. Returns the spike and the membrane potential after its reset."""
    charged = charge(current, v, tau, v_reset, decay_input)
    spike = Spike.apply(charged - v_threshold, surrogate, alpha)
    assert isinstance(spike, Tensor)
    fired = spike.detach() if detach_reset else spike
    if v_reset is None:
        return spike, charged - fired * v_threshold
    return spike, charged * (1 - fired) + fired * v_reset


@torch.no_grad()
def charges(current: Tensor, v: Tensor, **neuron: Any) -> Tensor:
    """Membranes [T, ...] at each step before the threshold is applied."""
    found = []
    for x in current.unbind(0):
        found.append(charge(x, v, neuron["tau"], neuron["v_reset"], neuron["decay_input"]))
        _, v = lif_step(x, v, **neuron)
    return torch.stack(found)


def lif(current: Tensor, v: Tensor, **neuron: object) -> tuple[Tensor, Tensor]:
    """All steps of current [T, ...] from membrane v [...]: spikes [T, ...] and the last membrane."""
    spikes = []
    for x in current.unbind(0):
        spike, v = lif_step(x, v, **neuron)  # pyright: ignore[reportArgumentType]
        spikes.append(spike)
    return torch.stack(spikes), v
