"""Triton kernels on packed spikes: 8-bit products and convolutions whose sums go straight into the neuron.

A packed tensor is int8 and holds T <= 8 steps: bit t says whether the neuron fired at step t. `x & 2^t` is then a
matrix of 0 and 2^t (-128 at t = 7), which one load of x gives in registers for every step, and 2^-t goes into the
scale. Weights are int8 [N, K], sums int32 and exact. Membranes are kept as distance from rest in units of tau where
the input decays: n <- decay * n + current, a spike where n >= threshold, then 0 or n - soft.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _step(x, t: tl.constexpr):
    """0 or 2^t (in 8 bits, signed) for each packed spike."""
    return x & (1 << t if t < 7 else -128)


@triton.jit
def _unit(t: tl.constexpr):
    return 1.0 / (1 << t) if t < 7 else -1.0 / 128


@triton.jit
def _integrate(bits, membrane, current, t: tl.constexpr, decay, threshold, soft, SOFT: tl.constexpr):
    """Bits and membrane after step t."""
    n = current if t == 0 else membrane * decay + current
    fired = n >= threshold
    bits = tl.where(fired, bits | (1 << t), bits)
    return bits, tl.where(fired, n - soft if SOFT else 0.0, n)


@triton.jit
def _spikes(currents, constants, T: tl.constexpr, SOFT: tl.constexpr, ASM: tl.constexpr):
    """Packed spikes, int8, of a tuple of T currents. ASM: the text of `neuron.ptx`, or None."""
    decay = tl.load(constants)
    threshold = tl.load(constants + 1)
    soft = tl.load(constants + 2)
    if ASM is not None:
        return tl.inline_asm_elementwise(
            ASM, "=r" + ",f" * (4 * (T + 3)), currents + (decay, threshold, soft), dtype=tl.int8, is_pure=True, pack=4
        )
    membrane = tl.zeros(currents[0].shape, tl.float32)
    bits = tl.zeros(currents[0].shape, tl.int32)
    for t in tl.static_range(T):
        bits, membrane = _integrate(bits, membrane, currents[t], t, decay, threshold, soft, SOFT)
    return bits.to(tl.int8)


@triton.jit
def _residuals(residual, row, n, inside, step, N: tl.constexpr, T: tl.constexpr):
    """A tuple of what is stored of each step, all on its way before the first is needed."""
    at = row[:, None] * N + n[None, :]
    mask = inside[:, None] & (n < N)[None, :]
    found = ()
    for t in tl.static_range(T):
        found = found + (tl.load(residual + t * step + at, mask=mask, other=0.0),)
    return found


@triton.jit
def _fire(
    sums, row, n, inside, scale, bias, residuals, membrane, spikes, step, constants,
    N: tl.constexpr, T: tl.constexpr, PACKED: tl.constexpr, RESIDUAL: tl.constexpr, MEMBRANE: tl.constexpr,
    FIRE: tl.constexpr, SOFT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Through the neuron: sums, a tuple of T times [BM, BN], of rows `row` (64 bits) and columns n of [M, N] outputs.

    PACKED: sums of packed spikes, 2^t too large. step = M * N (64 bits), the elements of one step of membrane
    [T, M, N]. RESIDUAL: onto the tuple `residuals`.
    """
    in_n = n < N
    s = tl.load(scale + n, mask=in_n, other=0.0)
    b = tl.load(bias + n, mask=in_n, other=0.0)
    at = row[:, None] * N + n[None, :]
    mask = inside[:, None] & in_n[None, :]
    currents = ()
    for t in tl.static_range(T):
        x = sums[t].to(tl.float32) * (s * (_unit(t) if PACKED else 1.0))[None, :] + b[None, :]
        if RESIDUAL:
            x += residuals[t].to(tl.float32)
        if MEMBRANE:
            tl.store(membrane + t * step + at, x.to(membrane.dtype.element_ty), mask=mask)
        currents = currents + (x,)
    if FIRE:
        tl.store(spikes + at, _spikes(currents, constants, T, SOFT, ASM), mask=mask)


@triton.jit
def linear_kernel(
    x, weight, scale, bias, residual, membrane, spikes, M, step, constants,
    N: tl.constexpr, K: tl.constexpr, T: tl.constexpr, RESIDUAL: tl.constexpr, MEMBRANE: tl.constexpr,
    FIRE: tl.constexpr, SOFT: tl.constexpr, ASM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Packed spikes [M, K] times weight [N, K], scaled, plus bias, plus residual, through the neuron: [M, N].

    AHEAD: residuals are read before the product, which hides their way.
    """
    pid = tl.program_id(0)
    columns = tl.cdiv(N, BN)
    m = (pid // columns) * BM + tl.arange(0, BM)
    n = (pid % columns) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = m.to(tl.int64)
    inside = m < M
    from_x = x + row[:, None] * K + k[None, :]
    from_w = weight + n[:, None] * K + k[None, :]
    step = tl.cast(step, tl.int64)  # T * step may pass 2^31
    residuals = ()
    if AHEAD:
        residuals = _residuals(residual, row, n, inside, step, N, T)
    sums = ()
    for t in tl.static_range(T):
        sums = sums + (tl.zeros([BM, BN], tl.int32),)
    for start in tl.range(0, K, BK, num_stages=STAGES):
        mask_x = inside[:, None]
        mask_w = (n < N)[:, None]
        if K % BK != 0:
            mask_x = mask_x & (k < K - start)[None, :]
            mask_w = mask_w & (k < K - start)[None, :]
        packed = tl.load(from_x + start, mask=mask_x, other=0)
        w = tl.trans(tl.load(from_w + start, mask=mask_w, other=0))
        grown = ()
        for t in tl.static_range(T):
            grown = grown + (tl.dot(_step(packed, t), w, sums[t], out_dtype=tl.int32),)
        sums = grown
    if RESIDUAL and not AHEAD:
        residuals = _residuals(residual, row, n, inside, step, N, T)
    _fire(
        sums, row, n, inside, scale, bias, residuals, membrane, spikes, step, constants,
        N, T, True, RESIDUAL, MEMBRANE, FIRE, SOFT, ASM,
    )  # fmt: skip


@triton.jit
def conv_kernel(
    x, weight, scale, bias, membrane, spikes, M, step, constants,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, T: tl.constexpr, MEMBRANE: tl.constexpr,
    FIRE: tl.constexpr, SOFT: tl.constexpr, ASM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """3x3 convolution (padding 1) of packed spikes [images, H, W, C], M = images * H * W, weight [N, 3, 3, C]."""
    pid = tl.program_id(0)
    columns = tl.cdiv(N, BN)
    m = (pid // columns) * BM + tl.arange(0, BM)
    n = (pid % columns) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = m.to(tl.int64)
    i = (m // W) % H
    j = m % W
    inside = m < M
    from_x = x + row[:, None] * C
    from_w = weight + n[:, None] * (9 * C) + k[None, :]
    sums = ()
    for t in tl.static_range(T):
        sums = sums + (tl.zeros([BM, BN], tl.int32),)
    for s in tl.range(0, (9 * C + BK - 1) // BK, num_stages=STAGES):
        start = s * BK
        if C % BK == 0:
            place = s // (C // BK)
            di = place // 3 - 1
            dj = place % 3 - 1
            seen = inside & (i + di >= 0) & (i + di < H) & (j + dj >= 0) & (j + dj < W)
            packed = tl.load(
                from_x + ((di * W + dj) * C + s % (C // BK) * BK) + k[None, :], mask=seen[:, None], other=0
            )
        else:  # places meet within a block; weights beyond the ninth are 0
            place = (start + k) // C
            di = (place // 3 - 1)[None, :]
            dj = (place % 3 - 1)[None, :]
            seen = inside[:, None] & (i[:, None] + di >= 0) & (i[:, None] + di < H)
            seen = seen & (j[:, None] + dj >= 0) & (j[:, None] + dj < W)
            packed = tl.load(from_x + (di * W + dj) * C + ((start + k) % C)[None, :], mask=seen, other=0)
        mask_w = (n < N)[:, None]
        if 9 * C % BK != 0:
            mask_w = mask_w & (k < 9 * C - start)[None, :]
        w = tl.trans(tl.load(from_w + start, mask=mask_w, other=0))
        grown = ()
        for t in tl.static_range(T):
            grown = grown + (tl.dot(_step(packed, t), w, sums[t], out_dtype=tl.int32),)
        sums = grown
    _fire(
        sums, row, n, inside, scale, bias, (), membrane, spikes, tl.cast(step, tl.int64), constants,
        N, T, True, False, MEMBRANE, FIRE, SOFT, ASM,
    )  # fmt: skip
