"""The constants of one fused batch normalisation and neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NormLif:
    """What `norm_lif` does: `fire` spikes, hand out the `membrane` current, `pool` over a (height, width) grid,
    hand the spikes out as `bits` too. `largest`: a pool's gradient goes to its largest charge, not its first spike."""

    time_steps: int
    training: bool
    eps: float = 1e-5
    fire: bool = True
    membrane: bool = False
    pool: tuple[int, int] | None = None
    bits: bool = False
    largest: bool = False
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    detach_reset: bool = True
    surrogate: str = "sigmoid"
    alpha: float = 4.0

    def pack(self) -> tuple[list[int], list[float]]:
        """As two plain lists, which a registered operator can take."""
        height, width = self.pool or (0, 0)
        flags = [self.time_steps, self.training, self.fire, self.membrane, height, width, self.bits, self.largest]
        flags += [self.v_reset is None, self.decay_input, self.detach_reset, self.surrogate == "atan"]
        return [int(f) for f in flags], [self.eps, self.v_threshold, self.v_reset or 0.0, self.alpha]

    @classmethod
    def unpack(cls, flags: Sequence[int], numbers: Sequence[float]) -> NormLif:
        """The inverse of `pack`."""
        time_steps, training, fire, membrane, height, width, bits, largest, *neuron = flags
        soft, decay_input, detach_reset, atan = neuron
        eps, v_threshold, v_reset, alpha = numbers
        return cls(
            time_steps=time_steps,
            training=bool(training),
            eps=eps,
            fire=bool(fire),
            membrane=bool(membrane),
            pool=(height, width) if height else None,
            bits=bool(bits),
            largest=bool(largest),
            v_threshold=v_threshold,
            v_reset=None if soft else v_reset,
            decay_input=bool(decay_input),
            detach_reset=bool(detach_reset),
            surrogate="atan" if atan else "sigmoid",
            alpha=alpha,
        )
