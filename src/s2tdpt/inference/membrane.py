"""Neurons over time in as few passes over memory as PyTorch's own operators allow.

Currents and membranes are kept with their sign turned, as the distance from rest, times tau where the input decays:
n ← decay · n − current, a spike where n ≤ −threshold. A hard reset is then one pass of `threshold_`, and neither tau
nor v_reset costs an operation. A product that can add its result to a tensor charges the membrane by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..neurons import LIF
from .synapses import Synapse

_CHUNK = 1 << 19
"""Elements compared at once: they and their float comparison stay in the second-level caches."""


@dataclass(frozen=True)
class Membrane:
    """A LIF or PLIF layer: n ← decay · n − current, spike where n ≤ −threshold, then 0 or (soft) n + threshold's."""

    decay: float
    threshold: float
    soft_reset: float | None

    @classmethod
    @torch.no_grad()
    def of(cls, neuron: LIF) -> Membrane:
        tau = float(neuron.tau)
        unit = tau if neuron.decay_input else 1.0
        soft = neuron.v_reset is None
        rest = 0.0 if neuron.v_reset is None else neuron.v_reset
        return cls(1 - 1 / tau, unit * (neuron.v_threshold - rest), unit * neuron.v_threshold if soft else None)

    def fire(self, currents: Iterable[Tensor], dtype: torch.dtype, *, keep: bool) -> list[Tensor]:
        """Spikes of each step from its current (sign turned); `keep=False` lets the currents be overwritten."""
        out: list[Tensor] = []
        n = None
        steps = list(currents)
        for t, current in enumerate(steps):
            if n is None:
                n = current.clone() if keep else current
            elif keep:
                torch.add(current, n, alpha=self.decay, out=n)
            else:
                n = current.add_(n, alpha=self.decay)
            out.append(self._spikes(n, 1.0, dtype, last=t == len(steps) - 1))
        return out

    def fire_through(self, synapse: Synapse, spikes: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Spikes of each step from the spikes that reach the synapse in front of this layer."""
        growth = synapse.growth(self.decay, len(spikes))
        out: list[Tensor] = []
        n = None
        for t, arriving in enumerate(spikes):
            n = synapse.charge(arriving, n, self.decay, growth**t)
            out.append(self._spikes(n, growth**t, dtype, last=t == len(spikes) - 1))
        return out

    def _spikes(self, n: Tensor, unit: float, dtype: torch.dtype, *, last: bool) -> Tensor:
        """Where n has reached the threshold; n is reset there. Membranes are in multiples of 1/unit."""
        spikes = torch.empty_like(n, dtype=dtype)
        threshold = -self.threshold * unit
        flat, fired = n.view(-1), spikes.view(-1)
        scratch = None if dtype == n.dtype else torch.empty(min(_CHUNK, n.numel()), dtype=n.dtype)
        for part, into in zip(flat.split(_CHUNK), fired.split(_CHUNK), strict=True):
            # Comparing into floats and narrowing those to 8 bits is three times as fast as comparing into bool.
            found = torch.le(part, threshold, out=into if scratch is None else scratch[: len(part)])
            if scratch is not None:
                into.view(torch.int8).copy_(found)
            if last:
                continue
            if self.soft_reset is None:
                torch.threshold_(part, threshold, 0.0)
            else:
                part.add_(found, alpha=self.soft_reset * unit)
        return spikes
