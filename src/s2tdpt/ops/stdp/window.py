"""The STDP window: how a spike-time difference changes a synapse (paper, sections 2.1 and eqs 18-22)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from ...errors import InputError

PerHead = float | tuple[float, ...]


@dataclass(frozen=True)
class StdpWindow:
    """w(Δt) = offset + a_plus · exp(Δt/tau_plus) if Δt < 0, else offset − a_minus · exp(−Δt/tau_minus): eqs 20-22.

    Δt = t_Q − t_K in ms, with the first-spike latency t(r) = t_max · (1 − r / D_h) of a token whose D_h features fired
    r times (eq. 18). Each constant is a number, or a tuple with one number a head. The paper leaves them open and uses
    equal ones on both sides; only a·scale, offset·scale and t_max/tau can be told apart behind a fixed threshold.

    `jump=False` is not the paper's: w = offset + a_plus · (1 − exp(Δt/tau_plus)), else offset − a_minus · (1 −
    exp(−Δt/tau_minus)). It meets the offset at Δt = 0 from both sides, where the paper's window jumps by a_plus +
    a_minus from one count to the next, and its slope has the sign of the way from depression to potentiation.
    """

    a_plus: PerHead = 0.45
    a_minus: PerHead = 0.45
    tau_plus: PerHead = 20.0
    tau_minus: PerHead = 20.0
    t_max: PerHead = 40.0
    offset: PerHead = 0.5
    jump: bool = True

    def __post_init__(self) -> None:
        heads = set()
        if not isinstance(self.jump, bool):
            raise InputError(f"StdpWindow: jump must be true or false, got {self.jump!r}")
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            if isinstance(value, (list, tuple)):
                value = tuple(float(v) if isinstance(v, int) else v for v in value)
                heads.add(len(value))
                object.__setattr__(self, field.name, value)
            values = value if isinstance(value, tuple) else (value,)
            if not values or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
                raise InputError(f"StdpWindow: {field.name} must be finite numbers, got {value!r}")
            if field.name.startswith(("tau", "t_max")) and min(values) <= 0:
                raise InputError(f"StdpWindow: {field.name} is a time in ms and must be > 0, got {value!r}")
        if len(heads) > 1:
            raise InputError(f"StdpWindow: the per-head constants disagree on the number of heads: {sorted(heads)}")

    @property
    def num_heads(self) -> int | None:
        """Number of heads if any constant is given per head, else None."""
        lengths = [len(v) for v in asdict(self).values() if isinstance(v, tuple)]
        return lengths[0] if lengths else None

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        """The six constants in the dtype and on the device of `like`: 0-d, or [H, 1, 1] where given per head."""
        values = (getattr(self, field.name) for field in fields(self)[:-1])
        tensors = (torch.tensor(v, dtype=like.dtype, device=like.device) for v in values)
        return tuple(t.view(-1, 1, 1) if t.ndim else t for t in tensors)

    def branches(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a_plus, a_minus, level_plus, level_minus), as `constants`, with which both forms of the window are one:

        w = level_plus + a_plus · exp(Δt/tau_plus) for Δt < 0, else level_minus − a_minus · exp(−Δt/tau_minus).
        """
        a_plus, a_minus, _, _, _, offset = self.constants(like)
        if self.jump:
            return a_plus, a_minus, offset, offset
        return -a_plus, -a_minus, offset + a_plus, offset - a_minus
