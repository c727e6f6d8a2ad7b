"""Triton kernels on packed spikes that are no 8-bit products: pixels, pooling, attention, and the mean at the end."""

from __future__ import annotations

import triton
import triton.language as tl

from ..stdp.kernels import _weights, _window_constants
from .kernels import _fire, _spikes


@triton.jit
def pixels_kernel(
    x, weight, scale, bias, membrane, spikes, M, step, constants,
    stride_t, stride_b, stride_c, stride_h, stride_w,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr,
    MEMBRANE: tl.constexpr, FIRE: tl.constexpr, SOFT: tl.constexpr, ASM: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """3x3 convolution (padding 1) of float32 images with weight [9 * C, N], (c, i, j) row by row, and its neuron.

    SHARED: one image at all T steps.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    row = m.to(tl.int64)
    i = (m // W) % H
    j = m % W
    inside = m < M
    corner = x + (row // (H * W)) * stride_b + i * stride_h + j * stride_w
    for first in tl.static_range(0, N, BN):
        n = first + tl.arange(0, BN)
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
            sums, row, n, inside, scale, bias, (), membrane, spikes, tl.cast(step, tl.int64), constants,
            N, T, False, False, MEMBRANE, FIRE, SOFT, ASM,
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
def _counts(words, T: tl.constexpr, WORD: tl.constexpr):
    """A tuple of the spikes of each row at each step, of words of WORD packed bytes [rows, columns]."""
    counts = ()
    for t in tl.static_range(T):
        lanes = tl.sum((words >> t) & (0x01010101 if WORD == 4 else 1), 1)
        pairs = (lanes & 0xFF00FF) + ((lanes >> 8) & 0xFF00FF)
        counts = counts + (((pairs & 0xFFFF) + (pairs >> 16)).to(tl.float32),)
    return counts


_WINDOW_ASM = tl.constexpr(
    "{ .reg .pred p; .reg .f32 m, f; sub.rn.f32 m, $1, $2; setp.gt.f32 p, m, 0f00000000; mul.rn.f32 f, m, $6; "
    "@p mul.rn.f32 f, m, $5; ex2.approx.ftz.f32 f, f; fma.rn.f32 $0, f, $4, $8; @p fma.rn.f32 $0, f, $3, $7; }"
)
"""Eqs 19-22 with selections as predicates, from counts of queries and keys, a_plus, -a_minus, exponents, levels."""


@triton.jit
def stdp_kernel(
    qkv, words, out, window, scale, constants, N, H: tl.constexpr, D: tl.constexpr, T: tl.constexpr,
    SOFT: tl.constexpr, ASM: tl.constexpr, HALF: tl.constexpr, WORD: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """scale * w * V of one head of one image and its neuron, of packed spikes [images, N, 3 * H * D] to [.., H * D].

    words: qkv as words of WORD bytes. HALF: w in half precision.
    """
    pid = tl.program_id(0)
    head = pid % H
    first = (pid // H).to(tl.int64) * N
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    v = tl.load(qkv + (first + n)[:, None] * (3 * H * D) + (2 * H * D + head * D + d)[None, :], mask=mask, other=0)
    v = v.to(tl.int16)
    e = tl.arange(0, BD // WORD)
    at = (first + n)[:, None] * (3 * H * D // WORD) + (head * (D // WORD) + e)[None, :]
    mask_e = (n < N)[:, None] & (e < D // WORD)[None, :]
    count_q = _counts(tl.load(words + at, mask=mask_e, other=0).to(tl.int32), T, WORD)
    count_k = _counts(tl.load(words + at + H * D // WORD, mask=mask_e, other=0).to(tl.int32), T, WORD)
    currents = ()
    for t in tl.static_range(T):
        r_q = count_q[t][:, None]
        r_k = count_k[t][None, :]
        if ASM is not None:
            a_plus, a_minus, e_plus, e_minus, level_plus, level_minus = _window_constants(window, head)
            w = tl.inline_asm_elementwise(
                _WINDOW_ASM, "=f,f,f,f,f,f,f,f,f",
                (r_q, r_k, a_plus, -a_minus, -e_plus, e_minus, level_plus, level_minus),
                dtype=tl.float32, is_pure=True, pack=1,
            )  # fmt: skip
        else:
            w, _ = _weights(r_q - r_k, window, head)
        if HALF:
            values = (v & (1 << t)).to(tl.float16, bitcast=True)  # a subnormal number, 2^(t - 24), exact in products
            current = scale * (1 << (24 - t)) * tl.dot(w.to(tl.float16), values)
        else:
            values = ((v >> t) & 1).to(tl.float32)
            current = scale * tl.dot(w, values, input_precision="tf32x3")
        currents = currents + (current,)
    to = (first + n)[:, None] * (H * D) + (head * D + d)[None, :]
    tl.store(out + to, _spikes(currents, constants, T, SOFT, ASM), mask=mask)


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


@triton.jit
def head_kernel(
    x, weight, bias, out, M, N, C, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """x [M, C] times weight [N, C], plus bias, all float32."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        a = tl.load(x + m[:, None] * C + c[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0.0)
        b = tl.load(weight + n[None, :] * C + c[:, None], mask=(n < N)[None, :] & (c < C)[:, None], other=0.0)
        total += tl.dot(a, b, input_precision="tf32x3")
    total += tl.load(bias + n, mask=n < N, other=0.0)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], total, mask=(m < M)[:, None] & (n < N)[None, :])
