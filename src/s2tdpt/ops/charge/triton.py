"""`add_constant` as a registered PyTorch operator, for `torch.compile` and CUDA graphs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .kernels import add_constant_kernel

_BLOCK = 1024


@torch.library.custom_op("s2tdpt::add_constant", mutates_args=())
def add_constant_op(x: Tensor, constant: float) -> Tensor:
    """See `reference.add_constant`: one pass; contiguous."""
    dense = x.contiguous()
    out = torch.empty_like(dense)
    grid = (triton.cdiv(out.numel(), _BLOCK),)
    add_constant_kernel[grid](dense, out, constant, out.numel(), BFLOAT16=x.dtype == torch.bfloat16, BLOCK=_BLOCK)
    return out


@add_constant_op.register_fake
def _(x, constant):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
