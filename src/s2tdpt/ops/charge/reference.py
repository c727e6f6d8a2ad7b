"""A tensor plus a constant that may be far smaller than the tensor's dtype can tell apart."""

from __future__ import annotations

import torch
from torch import Tensor


def add_constant(x: Tensor, constant: float) -> Tensor:
    """x + constant, in the dtype of x. In bfloat16 rounded up or down by a fixed draw at each place of its memory.

    Rounding to the nearest would give x again at every place where x is more than some 300 times the constant, and a
    sum over the places would miss all of it; so drawn, sums are right on average.
    """
    if x.dtype != torch.bfloat16:
        return x + constant
    total = x.contiguous().float() + constant
    bits = total.view(torch.int32)
    rounded = ((bits + draws(bits)) & -0x10000).view(torch.float32)
    return rounded.where(total == total, total).to(torch.bfloat16)  # NaN may be all ones: one more would be -0


def draws(like: Tensor) -> Tensor:
    """int32 in [0, 2¹⁶), a hash of each element's place in memory (Wellons' lowbias32), of the shape of `like`."""
    place = torch.arange(like.numel(), device=like.device).view(like.shape)
    place = (place ^ place >> 16) * 0x21F0AAAD & 0xFFFFFFFF
    place = (place ^ place >> 15) * 0x735A2D97 & 0xFFFFFFFF
    return ((place ^ place >> 15) & 0xFFFF).int()
