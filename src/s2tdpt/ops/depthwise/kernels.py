"""Triton kernels of the depth-wise 3x3 convolution (stride 1, padding 1) of images [B, H, W, C], channels last.

Rows are pixels, M = B·H·W. With nine products an element only the memory counts: everything is read once but for what
the caches give again, in tiles that are several image rows tall.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _inside(m, tap: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Whether pixels m have a neighbour at this place of the nine, and how many pixels on it lies."""
    down: tl.constexpr = tap // 3 - 1
    right: tl.constexpr = tap % 3 - 1
    i = (m // W) % H + down
    j = m % W + right
    return (i >= 0) & (i < H) & (j >= 0) & (j < W), down * W + right


@triton.jit
def depthwise_kernel(
    x, weight, out, M, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, FLIP: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[m, c] = Σ over nine neighbours of x · weight[tap, c]; FLIP turns the filters round: the input's gradient."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_m, in_c = m < M, c < C
    at = m.to(tl.int64)[:, None] * C + c[None, :]
    total = tl.zeros([BM, BC], tl.float32)
    for tap in tl.static_range(9):
        inside, shift = _inside(m, tap, H, W)
        mask = (in_m & inside)[:, None] & in_c[None, :]
        w = tl.load(weight + (8 - tap if FLIP else tap) * C + c, mask=in_c, other=0.0).to(tl.float32)
        total += tl.load(x + at + shift * C, mask=mask, other=0.0).to(tl.float32) * w[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=in_m[:, None] & in_c[None, :])


@triton.jit
def depthwise_weight_kernel(
    grad, x, partial, M, rows_per_program, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BITS: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial[p, tap, c] = Σ over this program's rows of grad[m, c] · x[m's neighbour, c]; BITS: x is packed."""
    p = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = c < C
    sums = ()
    for tap in tl.static_range(9):
        sums = sums + (tl.zeros([BM, BC], tl.float32),)
    start = p * rows_per_program
    stop = tl.minimum(start + rows_per_program, M)
    for r in range(start, stop, BM):
        m = r + tl.arange(0, BM)
        in_m = m < stop
        at = m.to(tl.int64)[:, None] * C + c[None, :]
        g = tl.load(grad + at, mask=in_m[:, None] & in_c[None, :], other=0.0).to(tl.float32)
        summed = ()
        for tap in tl.static_range(9):
            inside, shift = _inside(m, tap, H, W)
            mask = (in_m & inside)[:, None] & in_c[None, :]
            place = at + shift * C
            if BITS:
                byte = tl.load(x + (place >> 3), mask=mask, other=0).to(tl.int32)
                seen = ((byte >> (place & 7).to(tl.int32)) & 1).to(tl.float32)
            else:
                seen = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            summed = summed + (sums[tap] + g * seen,)
        sums = summed
    for tap in tl.static_range(9):
        tl.store(partial + (p * 9 + tap) * C + c, tl.sum(sums[tap], 0), mask=in_c)
