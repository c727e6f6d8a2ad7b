"""Triton kernels: batch normalisation (+ residual) + LIF over T (+ max-pool), forward and backward.

Tensors are [T, M, C] with channels last. Membranes live in float32 registers and are never stored: the backward pass
integrates them again. Sums over rows go through per-program partial sums, so results do not depend on timing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _charge(v, x, inv_tau, REST: tl.constexpr, DECAY_INPUT: tl.constexpr):
    if DECAY_INPUT:
        return v + (x - (v - REST)) * inv_tau
    return v - (v - REST) * inv_tau + x


@triton.jit
def _reset(h, fired, THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr):
    return tl.where(fired, h - THRESHOLD if SOFT else REST, h)


@triton.jit
def _through_reset(
    h, grad_v, slope, THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DETACH: tl.constexpr
):
    """Gradient of the charged membrane h by way of the membrane after its reset."""
    if SOFT:
        return grad_v if DETACH else grad_v * (1.0 - THRESHOLD * slope)
    kept = tl.where(h >= THRESHOLD, 0.0, grad_v)
    return kept if DETACH else kept + grad_v * (REST - h) * slope


@triton.jit
def _surrogate(u, ALPHA: tl.constexpr, ATAN: tl.constexpr):
    if ATAN:
        z = 1.5707963267948966 * ALPHA * u
        return (ALPHA / 2) / (1.0 + z * z)
    z = tl.exp2(tl.abs(u) * (-1.4426950408889634 * ALPHA))  # the derivative of σ is even: this never overflows
    return ALPHA * z / ((1.0 + z) * (1.0 + z))


@triton.jit
def stats_kernel(y, partial, rows, rows_per_program, C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    """partial[p] = Σ(y − y₀), Σ(y − y₀)² over this program's rows, y₀ the first row (against cancellation)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1)
    in_c = c < C
    shift = tl.load(y + c, mask=in_c, other=0.0).to(tl.float32)
    first = tl.zeros([BM, BC], tl.float32)
    second = tl.zeros([BM, BC], tl.float32)
    start = p * rows_per_program
    for r in range(start, tl.minimum(start + rows_per_program, rows), BM):
        m = r + tl.arange(0, BM)
        mask = (m < tl.minimum(start + rows_per_program, rows))[:, None] & in_c[None, :]
        d = tl.load(y + m.to(tl.int64)[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32) - shift[None, :]
        d = tl.where(mask, d, 0.0)
        first += d
        second += d * d
    tl.store(partial + (p * 2) * C + c, tl.sum(first, 0), mask=in_c)
    tl.store(partial + (p * 2 + 1) * C + c, tl.sum(second, 0), mask=in_c)


@triton.jit
def stats_finish_kernel(y, partial, mean, var, rows, programs, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Mean and biased variance of each channel from the partial sums."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    in_c = c < C
    first = tl.zeros([BP, BC], tl.float32)
    second = tl.zeros([BP, BC], tl.float32)
    for i in range(0, programs, BP):
        p = i + tl.arange(0, BP)
        mask = (p < programs)[:, None] & in_c[None, :]
        first += tl.load(partial + (p * 2)[:, None] * C + c[None, :], mask=mask, other=0.0)
        second += tl.load(partial + (p * 2 + 1)[:, None] * C + c[None, :], mask=mask, other=0.0)
    n = rows.to(tl.float32)
    delta = tl.sum(first, 0) / n
    shift = tl.load(y + c, mask=in_c, other=0.0).to(tl.float32)
    tl.store(mean + c, shift + delta, mask=in_c)
    tl.store(var + c, tl.maximum(tl.sum(second, 0) / n - delta * delta, 0.0), mask=in_c)


@triton.jit
def sum_finish_kernel(partial, out, programs, width, BP: tl.constexpr, BC: tl.constexpr):
    """out[w] = Σ_p partial[p, w]."""
    w = tl.program_id(0) * BC + tl.arange(0, BC)
    in_w = w < width
    total = tl.zeros([BP, BC], tl.float32)
    for i in range(0, programs, BP):
        p = i + tl.arange(0, BP)
        mask = (p < programs)[:, None] & in_w[None, :]
        total += tl.load(partial + p[:, None] * width + w[None, :], mask=mask, other=0.0)
    tl.store(out + w, tl.sum(total, 0), mask=in_w)


@triton.jit
def _affine(weight, bias, mean, var, c, in_c, EPS: tl.constexpr):
    """BN as a·y + b: a = γ·rstd, b = β − μ·a; and rstd, μ."""
    mu = tl.load(mean + c, mask=in_c, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var + c, mask=in_c, other=1.0) + EPS)
    a = tl.load(weight + c, mask=in_c, other=0.0) * rstd
    return a, tl.load(bias + c, mask=in_c, other=0.0) - mu * a, rstd, mu


@triton.jit
def _store_bits(bits, spike, start, stop, BLOCK: tl.constexpr):
    """Eight neighbouring spikes a byte, the first one lowest; start and stop are multiples of 8."""
    eights = tl.reshape(spike.to(tl.int32), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    at = start // 8 + tl.arange(0, BLOCK // 8)
    tl.store(bits + at, tl.sum(eights, 1).to(tl.uint8), mask=at < stop // 8)


@triton.jit
def unpack_kernel(bits, out, n, BLOCK: tl.constexpr):
    """The spikes that `_store_bits` packed."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < n
    byte = tl.load(bits + offset // 8, mask=mask, other=0).to(tl.int32)
    tl.store(out + offset, ((byte >> (offset % 8).to(tl.int32)) & 1).to(tl.float32).to(out.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    y, weight, bias, mean, var, inv_tau, residual, spikes, membrane, bits,
    n, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr, EPS: tl.constexpr,
    RESIDUAL: tl.constexpr, MEMBRANE: tl.constexpr, FIRE: tl.constexpr, PACK: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """spikes = LIF(BN(y) (+ residual)) over T for BLOCK elements of [M, C]; SHARED: y is one step, shown T times."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    a, b, _, _ = _affine(weight, bias, mean, var, offset % C, mask, EPS)
    k = tl.load(inv_tau)
    v = tl.full([BLOCK], REST, tl.float32)
    for t in tl.static_range(T):
        x = tl.load(y + (0 if SHARED else t) * n + offset, mask=mask, other=0.0).to(tl.float32) * a + b
        if RESIDUAL:
            x += tl.load(residual + t * n + offset, mask=mask, other=0.0).to(tl.float32)
        if MEMBRANE:
            stored = x.to(membrane.dtype.element_ty)
            tl.store(membrane + t * n + offset, stored, mask=mask)
            x = stored.to(tl.float32)  # so that the backward pass, which reads it, integrates the same numbers
        if FIRE:
            h = _charge(v, x, k, REST, DECAY_INPUT)
            spike = (h >= THRESHOLD).to(tl.float32)
            tl.store(spikes + t * n + offset, spike.to(spikes.dtype.element_ty), mask=mask)
            if PACK:
                _store_bits(bits, spike, first + t * n, n + t * n, BLOCK)
            v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)


@triton.jit
def forward_pool_kernel(
    y, weight, bias, mean, var, inv_tau, spikes, index, bits,
    n, n_in, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr,
    T: tl.constexpr, EPS: tl.constexpr, PACK: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Max-pool (3, stride 2, padding 1) of LIF(BN(y)); index = which of the 9 places the gradient goes to.

    The neurons of the nine places are integrated once for each window that they are in: arithmetic is cheap here,
    writing the unpooled spikes is not.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    c = offset % C
    a, b, _, _ = _affine(weight, bias, mean, var, c, mask, EPS)
    k = tl.load(inv_tau)
    q = (offset // C) % WP
    p = (offset // (C * WP)) % HP
    image = offset // (C * WP * HP)
    fired = ()
    place = ()
    for t in tl.static_range(T):
        fired = fired + (tl.zeros([BLOCK], tl.int32),)
        place = place + (tl.full([BLOCK], 9, tl.int32),)
    for s in tl.static_range(9):
        i = 2 * p + (s // 3 - 1)
        j = 2 * q + (s % 3 - 1)
        inside = mask & (i >= 0) & (i < H) & (j >= 0) & (j < W)
        at = ((image * H + i) * W + j) * C + c
        v = tl.full([BLOCK], REST, tl.float32)
        fired_now = ()
        place_now = ()
        for t in tl.static_range(T):
            x = tl.load(y + t * n_in + at, mask=inside, other=0.0).to(tl.float32) * a + b
            h = _charge(v, x, k, REST, DECAY_INPUT)
            v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
            here = inside & (h >= THRESHOLD)
            picked = (inside & (place[t] == 9)) | (here & (fired[t] == 0))  # the first maximum in reading order
            place_now = place_now + (tl.where(picked, s, place[t]),)
            fired_now = fired_now + (fired[t] | here.to(tl.int32),)
        fired = fired_now
        place = place_now
    for t in tl.static_range(T):
        tl.store(spikes + t * n + offset, fired[t].to(tl.float32).to(spikes.dtype.element_ty), mask=mask)
        tl.store(index + t * n + offset, place[t].to(tl.uint8), mask=mask)
        if PACK:
            _store_bits(bits, fired[t], first + t * n, n + t * n, BLOCK)


@triton.jit
def _pooled_gradient(
    grad, index, base, c, m, mask, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, HP: tl.constexpr, WP: tl.constexpr
):
    """Gradient of the neurons of rows m, channels c: the sum over the windows that picked each."""
    i = (m // W) % H
    j = m % W
    image = (m // (W * H)).to(tl.int64)
    total = tl.zeros(mask.shape, tl.float32)
    for di in tl.static_range(2):
        p = (i + 1) // 2 - di
        down = i - 2 * p + 1
        for dj in tl.static_range(2):
            q = (j + 1) // 2 - dj
            right = j - 2 * q + 1
            inside = (p >= 0) & (p < HP) & (down <= 2) & (q >= 0) & (q < WP) & (right <= 2)
            at = base + (((image * HP + p) * WP + q) * C)[:, None] + c[None, :]
            seen = mask & inside[:, None]
            picked = tl.load(index + at, mask=seen, other=255).to(tl.int32) == (down * 3 + right)[:, None]
            total += tl.where(picked, tl.load(grad + at, mask=seen, other=0.0).to(tl.float32), 0.0)
    return total


@triton.jit
def backward_kernel(
    y, weight, bias, mean, var, inv_tau, membrane, index, grad_spikes, grad_membrane, sums, partial, out,
    M, rows_per_program, n_out, count, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr,
    T: tl.constexpr, SHARED: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr,
    HAS_MEMBRANE: tl.constexpr, GRAD_MEMBRANE: tl.constexpr, FIRE: tl.constexpr, POOL: tl.constexpr,
    APPLY: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, DETACH: tl.constexpr,
    ALPHA: tl.constexpr, ATAN: tl.constexpr, GRAD_TAU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Backward through the neuron; two passes over the same tile.

    APPLY = 0: partial sums over rows of dx and dx·x̂ (and of ∂/∂(1/τ)); where the membrane is an output, dx is stored.
    APPLY = 1: dy = a·(dx − mean(dx) − x̂·mean(dx·x̂)) with the finished sums.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1)
    in_c = c < C
    a, b, rstd, mu = _affine(weight, bias, mean, var, c, in_c, EPS)
    k = tl.load(inv_tau)
    sum_dx = tl.zeros([BM, BC], tl.float32)
    sum_dxy = tl.zeros([BM, BC], tl.float32)
    sum_tau = tl.zeros([BM, BC], tl.float32)
    by_y = tl.zeros([BC], tl.float32)  # dy = a·dx + by_y·(y − μ) + constant
    constant = tl.zeros([BC], tl.float32)
    if APPLY and TRAINING:
        by_y = -a * rstd * tl.load(sums + C + c, mask=in_c, other=0.0) / count
        constant = -a * tl.load(sums + c, mask=in_c, other=0.0) / count
    row = tl.arange(0, BM)
    place = row[:, None] * C + c[None, :]
    wide = M.to(tl.int64) * 0 + C  # 64 bits: rows times C may pass 2³¹
    n = M * wide
    start = p * rows_per_program
    stop = tl.minimum(start + rows_per_program, M)
    for r in range(start, stop, BM):
        mask = (row < stop - r)[:, None] & in_c[None, :]
        first = wide * r
        charged = ()
        before = ()
        inputs = ()
        v = tl.full([BM, BC], REST, tl.float32)
        if FIRE:
            for t in tl.static_range(T):
                if HAS_MEMBRANE:
                    x = tl.load(membrane + (t * n + first) + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    at = y + ((0 if SHARED else t) * n + first) + place
                    x = tl.load(at, mask=mask, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
                h = _charge(v, x, k, REST, DECAY_INPUT)
                if GRAD_TAU:
                    before = before + (v,)
                    inputs = inputs + (x,)
                charged = charged + (h,)
                v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
        grad_v = tl.zeros([BM, BC], tl.float32)
        shared_dx = tl.zeros([BM, BC], tl.float32)
        for back in tl.static_range(T):
            shift = (T - 1 - back) * n + first
            dx = tl.zeros([BM, BC], tl.float32)
            if FIRE:
                if POOL:
                    windows = (T - 1 - back) * n_out
                    grad = _pooled_gradient(grad_spikes, index, windows, c, r + row, mask, H, W, C, HP, WP)
                else:
                    grad = tl.load(grad_spikes + shift + place, mask=mask, other=0.0).to(tl.float32)
                h = charged[T - 1 - back]
                slope = _surrogate(h - THRESHOLD, ALPHA, ATAN)
                grad_h = grad * slope + _through_reset(h, grad_v, slope, THRESHOLD, REST, SOFT, DETACH)
                grad_v = grad_h * (1.0 - k)
                dx = grad_h * k if DECAY_INPUT else grad_h
                if GRAD_TAU:
                    by_tau = REST - before[T - 1 - back]
                    if DECAY_INPUT:
                        by_tau += inputs[T - 1 - back]
                    sum_tau += tl.where(mask, grad_h * by_tau, 0.0)
            if GRAD_MEMBRANE:
                dx += tl.load(grad_membrane + shift + place, mask=mask, other=0.0).to(tl.float32)
            if HAS_MEMBRANE:
                tl.store(out + shift + place, dx.to(out.dtype.element_ty), mask=mask)
            if SHARED:
                shared_dx += dx
            else:
                d = tl.load(y + shift + place, mask=mask, other=0.0).to(tl.float32) - mu[None, :]
                if APPLY:
                    dy = dx * a[None, :] + (d * by_y[None, :] + constant[None, :])
                    tl.store(out + shift + place, dy.to(out.dtype.element_ty), mask=mask)
                else:
                    sum_dx += dx
                    sum_dxy += dx * d
        if SHARED:
            d = tl.load(y + first + place, mask=mask, other=0.0).to(tl.float32) - mu[None, :]
            if APPLY:
                dy = shared_dx * a[None, :] + (d * by_y[None, :] + constant[None, :])
                tl.store(out + first + place, dy.to(out.dtype.element_ty), mask=mask)
            else:
                sum_dx += shared_dx
                sum_dxy += shared_dx * d
    if APPLY == 0:
        tl.store(partial + (p * 3) * C + c, tl.sum(sum_dx, 0), mask=in_c)
        tl.store(partial + (p * 3 + 1) * C + c, tl.sum(sum_dxy, 0) * rstd, mask=in_c)
        tl.store(partial + (p * 3 + 2) * C + c, tl.sum(sum_tau, 0), mask=in_c)


@triton.jit
def backward_norm_kernel(
    y, weight, mean, var, dx, sums, out, n, count, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr,
    EPS: tl.constexpr, TRAINING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dy from stored dx [T, M, C]: a·(dx − mean(dx) − x̂·mean(dx·x̂)); SHARED sums dx over T first."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    c = offset % C
    mu = tl.load(mean + c, mask=mask, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var + c, mask=mask, other=1.0) + EPS)
    a = tl.load(weight + c, mask=mask, other=0.0) * rstd
    by_y = tl.zeros([BLOCK], tl.float32)
    constant = tl.zeros([BLOCK], tl.float32)
    if TRAINING:
        by_y = -a * rstd * tl.load(sums + C + c, mask=mask, other=0.0) / count
        constant = -a * tl.load(sums + c, mask=mask, other=0.0) / count
    total = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(T):
        d = tl.load(dx + t * n + offset, mask=mask, other=0.0).to(tl.float32)
        if SHARED:
            total += d
        else:
            dy = d * a
            if TRAINING:
                dy += (tl.load(y + t * n + offset, mask=mask, other=0.0).to(tl.float32) - mu) * by_y + constant
            tl.store(out + t * n + offset, dy.to(out.dtype.element_ty), mask=mask)
    if SHARED:
        dy = total * a
        if TRAINING:
            dy += (tl.load(y + offset, mask=mask, other=0.0).to(tl.float32) - mu) * by_y + constant
        tl.store(out + offset, dy.to(out.dtype.element_ty), mask=mask)
