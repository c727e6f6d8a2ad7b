"""The depth-wise convolution as registered PyTorch operators, for `torch.compile` and CUDA graphs."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import kernels

_ROWS = 64
_WEIGHT_TILE = 512  # nine sums of a tile are in registers
_PROGRAMS = 132 * 8


def _width(channels: int) -> int:
    return next((w for w in (64, 32, 16) if channels % w == 0), 16)


@torch.library.custom_op("s2tdpt::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, flip: bool) -> Tensor:
    """x [B, H, W, C] * weight [C, 1, 3, 3], padding 1, in the dtype of x; `flip` turns the filters round."""
    B, H, W, C = x.shape
    out, rows, width = torch.empty_like(x), B * H * W, _width(C)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(C, width))
    taps = weight.view(C, 9).t().contiguous()  # neighbouring channels beside each other, as in x
    kernels.depthwise_kernel[grid](x, taps, out, rows, C=C, H=H, W=W, FLIP=flip, BM=_ROWS, BC=width)
    return out


@depthwise.register_fake
def _(x, weight, flip):
    return torch.empty_like(x)


@torch.library.custom_op("s2tdpt::depthwise_weight", mutates_args=())
def depthwise_weight(grad: Tensor, x: Tensor, packed: bool) -> Tensor:
    """∂weight [C, 1, 3, 3], float32, of grad [B, H, W, C] and the input x of that shape, or its bits if `packed`."""
    B, H, W, C = grad.shape
    rows, width = B * H * W, _width(C)
    tile_rows = _WEIGHT_TILE // width
    wanted = max(1, _PROGRAMS // triton.cdiv(C, width))
    per_program = triton.cdiv(triton.cdiv(rows, wanted), tile_rows) * tile_rows
    programs = triton.cdiv(rows, per_program)
    partial = torch.empty(programs, 9, C, device=grad.device, dtype=torch.float32)
    kernels.depthwise_weight_kernel[(programs, triton.cdiv(C, width))](
        grad, x, partial, rows, per_program, C=C, H=H, W=W, BITS=packed, BM=tile_rows, BC=width
    )
    return partial.sum(0).t().contiguous().view(C, 1, 3, 3)


@depthwise_weight.register_fake
def _(grad, x, packed):
    return grad.new_empty(grad.shape[-1], 1, 3, 3, dtype=torch.float32)
