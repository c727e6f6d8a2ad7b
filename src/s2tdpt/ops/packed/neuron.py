"""The neuron of packed spikes as plain numbers, and packed spikes to and from those of each step."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    _on: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, neuron: LIF) -> Constants:
        tau = float(neuron.tau)
        unit = tau if neuron.decay_input else 1.0
        rest = 0.0 if neuron.v_reset is None else neuron.v_reset
        soft = unit * neuron.v_threshold if neuron.v_reset is None else None
        return cls(1 - 1 / tau, unit * (neuron.v_threshold - rest), soft)

    def on(self, device: torch.device) -> Tensor:
        """As the kernels read them, float32 [3]; kept, since a CUDA graph cannot copy them and goes on reading them."""
        if device not in self._on:
            with torch.inference_mode(False):
                self._on[device] = torch.tensor([self.decay, self.threshold, self.soft or 0.0], device=device)
        return self._on[device]

    def fire(self, currents: Tensor) -> Tensor:
        """Spikes [T, ...], uint8, of currents [T, ...] with PyTorch's operators: what the kernels must give."""
        n = torch.zeros_like(currents[0])
        spikes: list[Tensor] = []
        for current in currents:
            n = n * self.decay + current
            fired = n >= self.threshold
            spikes.append(fired.to(torch.uint8))
            n = torch.where(fired, torch.zeros_like(n) if self.soft is None else n - self.soft, n)
        return torch.stack(spikes)


def ptx(time_steps: int, *, soft: bool) -> str:
    """PTX for four neurons at once: from their currents (float32) at all steps, and decay and threshold (and soft).

    What a compiler does not find: charging is a multiply-add under a predicate, which leaves out whoever fired, and
    spikes are added to their place in the word under one, so that neither needs a selection.
    """
    T = time_steps
    value = {name: f"${1 + 4 * (T + i)}" for i, name in enumerate(("decay", "threshold", "soft"))}
    lines = [".reg .pred p<4>;", ".reg .f32 n<4>, m<4>;", "mov.b32 $0, 0;"]
    for t in range(T):
        for e in range(4):
            current = f"${1 + 4 * t + e}"
            if t == 0:
                lines.append(f"mov.f32 n{e}, {current};")
            elif soft:
                lines.append(f"@p{e} sub.rn.f32 n{e}, n{e}, {value['soft']};")
                lines.append(f"fma.rn.f32 n{e}, n{e}, {value['decay']}, {current};")
            else:
                lines.append(f"mov.f32 m{e}, {current};")
                lines.append(f"@!p{e} fma.rn.f32 m{e}, n{e}, {value['decay']}, m{e};")
                lines.append(f"mov.f32 n{e}, m{e};")
            lines.append(f"setp.ge.f32 p{e}, n{e}, {value['threshold']};")
            lines.append(f"@p{e} add.u32 $0, $0, {1 << (t + 8 * e)};")
    return "{ " + " ".join(lines) + " }"


def pack(spikes: Tensor) -> Tensor:
    """Spikes [T, ...] of any dtype as int8 [...]: bit t is step t."""
    steps = spikes.to(torch.int32) << torch.arange(len(spikes), device=spikes.device).view(
        -1, *(1,) * (spikes.ndim - 1)
    )
    return steps.sum(0).to(torch.uint8).view(torch.int8)


def unpack(packed: Tensor, time_steps: int) -> Tensor:
    """The inverse of `pack`: uint8 [T, ...] of 0 and 1."""
    return torch.stack([(packed.view(torch.uint8) >> t) & 1 for t in range(time_steps)])
