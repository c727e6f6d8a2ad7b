"""Spiking neurons as modules over `ops.lif`: LIF with a fixed, PLIF with a learnable time constant."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .errors import InputError
from .ops.lif import lif
from .ops.lif.reference import charges
from .ops.lif.surrogate import resolve


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons: `neuron(current [T, ...])` gives spikes [T, ...], starting from rest.

    No state is kept between calls. `neuron.step(x, v)` does one step, with the membrane handed in (None: at rest) and
    out. Arguments are those of `s2tdpt.ops.lif`; `v_reset=None` is the soft reset. Eqs 7-9.
    """

    def __init__(
        self,
        tau: float = 2.0,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        detach_reset: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        if tau < 1:
            raise InputError(f"{type(self).__name__}: tau must be at least 1 step, got {tau}")
        self._tau = float(tau)
        self.v_threshold, self.v_reset = v_threshold, v_reset
        self.decay_input, self.detach_reset = decay_input, detach_reset
        self.surrogate, self.alpha = surrogate, resolve(surrogate, alpha)

    @property
    def tau(self) -> float | Tensor:
        """Membrane time constant in steps."""
        return self._tau

    def _run(self, current: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        return lif(
            current,
            v,
            tau=self.tau,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            decay_input=self.decay_input,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
            alpha=self.alpha,
        )

    def forward(self, current: Tensor) -> Tensor:
        """Spikes [T, ...] of current [T, ...], all steps at once, from rest."""
        return self._run(current, None)[0]

    def charged(self, current: Tensor) -> Tensor:
        """Membranes [T, ...] of current [T, ...] at each step before the threshold is applied; without gradients.

        Half-precision input is integrated in float32, as `forward` does: where they reach the threshold it fires.
        """
        current = current.to(torch.promote_types(current.dtype, torch.float32))
        start = torch.full_like(current[0], self.v_reset or 0.0)
        names = ("tau", "v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha")
        return charges(current, start, **{name: getattr(self, name) for name in names})

    def step(self, current: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spike [...] and new membrane [...] of one step's current [...]."""
        spikes, v = self._run(current.unsqueeze(0), v)
        return spikes[0], v

    @torch.no_grad()
    def extra_repr(self) -> str:
        return (
            f"tau={float(self.tau):g}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"decay_input={self.decay_input}, detach_reset={self.detach_reset}, "
            f"surrogate={self.surrogate}, alpha={self.alpha:g}"
        )


class PLIF(LIF):
    """LIF whose time constant is learnt: 1/tau = sigmoid(w), one w a layer, from `init_tau` > 1 (Fang et al. 2021)."""

    def __init__(self, init_tau: float = 2.0, **neuron: object) -> None:
        if init_tau <= 1:
            raise InputError(f"PLIF: init_tau must be greater than 1 step, got {init_tau}")
        super().__init__(init_tau, **neuron)  # pyright: ignore[reportArgumentType]
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    @property
    def tau(self) -> Tensor:
        """Membrane time constant in steps, 1/sigmoid(w)."""
        return 1 / self.w.sigmoid()
