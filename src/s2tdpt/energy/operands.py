"""What the values of a tensor are: spikes, ternary spikes, small integers or real numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["binary", "ternary", "integer", "float"]

MAX_INTEGER = 255  # numbers beyond 8 bits and a sign are priced as real ones
_TOLERANCE = 1e-4  # of one step: k · c in float32 is k steps of c up to rounding


@dataclass(frozen=True)
class Operand:
    """`kind`, `density` (fraction of non-zeros) and `scale`: values are `scale` times 0/1, -1/0/1 or integers."""

    kind: Kind
    density: float
    scale: float = 1.0


def classify(values: Tensor) -> Operand:
    """Sort a tensor by its values, whatever its dtype.

    {0, c} is binary and {-c, 0, c} ternary, since the scale c folds into the weights behind it; a tensor that never
    varies is binary only if it is all 0 (silent) or all 1. Multiples of one step up to 255 steps are integers.
    Anything else, NaN and infinity among it, is float.
    """
    count = values.numel()
    nonzeros = int(torch.count_nonzero(values))
    density = nonzeros / count if count else 0.0
    if nonzeros == 0 or values.dtype is torch.bool:
        return Operand("binary", density)
    if values.is_complex():
        return Operand("float", density)
    values = values.detach().to(torch.float64 if values.dtype is torch.float64 else torch.float32)
    low, high = (bound.item() for bound in values.aminmax())
    largest = max(-low, high)
    if not math.isfinite(largest):
        return Operand("float", density)
    magnitudes = values.abs()
    magnitudes = magnitudes[magnitudes > 0]
    smallest = magnitudes.min().item()
    if smallest == largest:
        if low < 0 < high:
            return Operand("ternary", density, largest)
        if nonzeros < count or largest == 1:
            return Operand("binary", density, largest if high > 0 else low)
        return Operand("float", density)
    for step in (1.0, smallest):
        if largest <= MAX_INTEGER * step:
            steps = magnitudes / step
            if bool(((steps - steps.round()).abs() <= (0 if step == 1 else _TOLERANCE)).all()):
                return Operand("integer", density, step)
    return Operand("float", density)
