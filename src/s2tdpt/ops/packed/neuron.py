"""The neuron of packed spikes as plain numbers, and packed spikes to and from those of each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...neurons import LIF

MAX_STEPS = 8
"""Steps that a byte holds."""


@dataclass(frozen=True)
class Constants:
    """A LIF layer: n <- decay * n + current, a spike where n >= threshold, then 0 or (soft) n - soft.

    n is the distance from rest, times tau where the input decays; so neither costs an operation.
    """

    decay: float
    threshold: float
    soft: float | None

    @classmethod
    @torch.no_grad()
    def of(cls, neuron: LIF) -> Constants:
        tau = float(neuron.tau)
        unit = tau if neuron.decay_input else 1.0
        rest = 0.0 if neuron.v_reset is None else neuron.v_reset
        soft = unit * neuron.v_threshold if neuron.v_reset is None else None
        return cls(1 - 1 / tau, unit * (neuron.v_threshold - rest), soft)


def pack(spikes: Tensor) -> Tensor:
    """Spikes [T, ...] of any dtype as int8 [...]: bit t is step t."""
    steps = spikes.to(torch.int32) << torch.arange(len(spikes), device=spikes.device).view(
        -1, *(1,) * (spikes.ndim - 1)
    )
    return steps.sum(0).to(torch.uint8).view(torch.int8)


def unpack(packed: Tensor, time_steps: int) -> Tensor:
    """The inverse of `pack`: uint8 [T, ...] of 0 and 1."""
    return torch.stack([(packed.view(torch.uint8) >> t) & 1 for t in range(time_steps)])
