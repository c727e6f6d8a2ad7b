"""Triton kernels on packed spikes that are no 8-bit products: pixels, pooling, attention, and the mean at the end."""

from __future__ import annotations

import triton
import triton.language as tl

from ..stdp.kernels import _weights
from .kernels import _fire, _integrate


@triton.jit
def pixels_kernel(
    x, weight, scale, bias, membrane, spikes, M, step, decay, threshold, soft,
    stride_t, stride_b, stride_c, stride_h, stride_w,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr,
    MEMBRANE: tl.constexpr, FIRE: tl.constexpr, SOFT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """3x3 convolution (padding 1) of float32 images with weight [9 * C, N], (c, i, j) row by row, and its neuron.

    SHARED: one image at all T steps.
    """
    pid = tl.program_id(0)
    columns = tl.cdiv(N, BN)
    m = (pid // columns) * BM + tl.arange(0, BM)
    n = (pid % columns) * BN + tl.arange(0, BN)
    row = m.to(tl.int64)
    i = (m // W) % H
    j = m % W
    inside = m < M
    corner = x + (row // (H * W)) * stride_b + i * stride_h + j * stride_w
    sums = ()
    for t in tl.static_range(T):
        if SHARED and t > 0:
            sums = sums + (sums[0],)
        else:
            total = tl.zeros([BM, BN], tl.float32)
            for start in tl.static_range(0, 9 * C, BK):
                k = start + tl.arange(0, BK)
                di = (k % 9) // 3 - 1
                dj = k % 3 - 1
                by = i[:, None] + di[None, :]
                bx = j[:, None] + dj[None, :]
                seen = inside[:, None] & (k < 9 * C)[None, :] & (by >= 0) & (by < H) & (bx >= 0) & (bx < W)
                at = (k // 9) * stride_c + di * stride_h + dj * stride_w
                pixels = tl.load(corner[:, None] + at[None, :] + t * stride_t, mask=seen, other=0.0)
                w = tl.load(
                    weight + k[:, None] * N + n[None, :], mask=(k < 9 * C)[:, None] & (n < N)[None, :], other=0.0
                )
                total += tl.dot(pixels, w, input_precision="tf32x3")
            sums = sums + (total,)
    _fire(
        sums, row, n, inside, scale, bias, membrane, membrane, spikes, step, decay, threshold, soft,
        N, T, False, False, MEMBRANE, FIRE, SOFT,
    )  # fmt: skip


@triton.jit
def pool_kernel(
    x, out, count, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Max-pool (3, stride 2, padding 1) of [images, H, W, C] to [images, HP, WP, C]: where any of nine fired."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offset = first + tl.arange(0, BLOCK)
    mask = offset < count
    c = offset % C
    q = (offset // C) % WP
    p = (offset // (C * WP)) % HP
    image = offset // (C * WP * HP)
    fired = tl.zeros([BLOCK], x.dtype.element_ty)
    for s in tl.static_range(9):
        i = 2 * p + (s // 3 - 1)
        j = 2 * q + (s % 3 - 1)
        seen = mask & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        fired |= tl.load(x + ((image * H + i) * W + j) * C + c, mask=seen, other=0)
    tl.store(out + offset, fired, mask=mask)


@triton.jit
def _counts(x, at, mask, first: tl.constexpr):
    """Spikes of each row at steps first ... first + 3, one byte a step."""
    b = tl.load(x + at, mask=mask, other=0).to(tl.int32) >> first
    return tl.sum((b & 1) | ((b & 2) << 7) | ((b & 4) << 14) | ((b & 8) << 21), 1)


@triton.jit
def stdp_kernel(
    qkv, out, window, scale, decay, threshold, soft, N, H: tl.constexpr, D: tl.constexpr, T: tl.constexpr,
    SOFT: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """scale * w * V of one head of one image and its neuron, of packed spikes [images, N, 3 * H * D] to [.., H * D]."""
    pid = tl.program_id(0)
    head = pid % H
    first = (pid // H).to(tl.int64) * N
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    at = (first + n)[:, None] * (3 * H * D) + (head * D + d)[None, :]
    v = tl.load(qkv + at + 2 * H * D, mask=mask, other=0).to(tl.int32)
    membrane = tl.zeros([BN, BD], tl.float32)
    bits = tl.zeros([BN, BD], tl.int32)
    for t in tl.static_range(T):
        if t % 4 == 0:
            count_q = _counts(qkv, at, mask, t)
            count_k = _counts(qkv, at + H * D, mask, t)
        r_q = ((count_q >> (t % 4 * 8)) & 255).to(tl.float32)
        r_k = ((count_k >> (t % 4 * 8)) & 255).to(tl.float32)
        w, _ = _weights(r_q[:, None] - r_k[None, :], window, head)
        values = ((v >> t) & 1).to(tl.float32).to(DOT)
        current = scale * tl.dot(w.to(DOT), values, input_precision="ieee")
        bits, membrane = _integrate(bits, membrane, current, t, decay, threshold, soft, SOFT)
    to = (first + n)[:, None] * (H * D) + (head * D + d)[None, :]
    tl.store(out + to, bits.to(tl.int8), mask=mask)


@triton.jit
def mean_kernel(
    u, out, N, step, factor, C: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """out[image, c] = factor * sum of u [T, images * N, C] over steps and tokens."""
    image = tl.program_id(0).to(tl.int64)
    step = tl.cast(step, tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros([BN, BC], tl.float32)
    for t in tl.static_range(T):
        for start in range(0, N, BN):
            n = start + tl.arange(0, BN)
            at = t * step + (image * N + n)[:, None] * C + c[None, :]
            total += tl.load(u + at, mask=(n < N)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    tl.store(out + image * C + c, tl.sum(total, 0) * factor, mask=c < C)
