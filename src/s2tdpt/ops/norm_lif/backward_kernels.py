"""Triton kernels: batch normalisation (+ residual) + LIF over T (+ max-pool), backward."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _affine, _charge, _reset, _surrogate, _through_reset


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
    y, weight, bias, mean, var, inv_tau, membrane, index, grad_spikes, grad_membrane, factors, partial, dx_out,
    M, rows_per_program, n_out, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    HP: tl.constexpr, WP: tl.constexpr,
    T: tl.constexpr, SHARED: tl.constexpr, EPS: tl.constexpr,
    MEMBRANE: tl.constexpr, FIRE: tl.constexpr, POOL: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr, DETACH: tl.constexpr,
    ALPHA: tl.constexpr, ATAN: tl.constexpr, GRAD_TAU: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    STORE: tl.constexpr, APPLY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Backward through the neuron, to dx, the gradient of the normalised current.

    APPLY = False: partial sums over rows of dx, dx·x̂ and ∂/∂(1/τ); STORE also keeps dx.
    APPLY = True: once more, now storing dy = f₀·dx + f₁·y + f₂ with the factors from the finished sums.
    A static image without a membrane (SHARED) has one dx, summed over T.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    p = tl.program_id(1)
    in_c = c < C
    a, b, rstd, mu = _affine(weight, bias, mean, var, c, in_c, EPS)
    k = tl.load(inv_tau)
    sum_dx = tl.zeros([BM, BC], tl.float32)
    sum_dxy = tl.zeros([BM, BC], tl.float32)
    sum_tau = tl.zeros([BM, BC], tl.float32)
    row = tl.arange(0, BM)
    place = row[:, None] * C + c[None, :]
    wide = tl.full([], C, tl.int64)  # 64 bits: rows times C may pass 2³¹
    n = M * wide
    start = p * rows_per_program
    stop = tl.minimum(start + rows_per_program, M)
    if APPLY:
        by_dx = tl.load(factors + c, mask=in_c, other=0.0)
        by_y = tl.load(factors + C + c, mask=in_c, other=0.0)
        constant = tl.load(factors + 2 * C + c, mask=in_c, other=0.0) + by_y * mu
    for r in tl.range(start, stop, BM, num_stages=STAGES):
        mask = (row < stop - r)[:, None] & in_c[None, :]
        first = wide * r
        centred = ()
        charged = ()
        before = ()
        inputs = ()
        v = tl.full([BM, BC], REST, tl.float32)
        for t in tl.static_range(T):
            if t == 0 or not SHARED:
                seen = tl.load(y + (t * n + first) + place, mask=mask, other=0.0).to(tl.float32)
                centred = centred + (seen - mu[None, :],)
            if FIRE:
                if MEMBRANE:
                    x = tl.load(membrane + (t * n + first) + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    x = seen * a[None, :] + b[None, :]
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
                    windows = (T - 1 - back) * (n_out + wide * 0)
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
            if MEMBRANE:
                dx += tl.load(grad_membrane + shift + place, mask=mask, other=0.0).to(tl.float32)
            if SHARED:
                shared_dx += dx
            elif not APPLY:
                sum_dx += dx
                sum_dxy += dx * centred[T - 1 - back]
            if APPLY and not SHARED:
                dx = dx * by_dx[None, :] + (centred[T - 1 - back] * by_y[None, :] + constant[None, :])
            if STORE and (MEMBRANE or not SHARED):
                tl.store(dx_out + shift + place, dx.to(dx_out.dtype.element_ty), mask=mask)
        if SHARED:
            if APPLY:
                shared_dx = shared_dx * by_dx[None, :] + (centred[0] * by_y[None, :] + constant[None, :])
            else:
                sum_dx += shared_dx
                sum_dxy += shared_dx * centred[0]
            if STORE and not MEMBRANE:
                tl.store(dx_out + first + place, shared_dx.to(dx_out.dtype.element_ty), mask=mask)
    if not APPLY:
        tl.store(partial + (p * 3) * C + c, tl.sum(sum_dx, 0), mask=in_c)
        tl.store(partial + (p * 3 + 1) * C + c, tl.sum(sum_dxy, 0) * rstd, mask=in_c)
        tl.store(partial + (p * 3 + 2) * C + c, tl.sum(sum_tau, 0), mask=in_c)


@triton.jit
def backward_sum_kernel(
    partial, weight, mean, var, sums, factors, programs, count,
    C: tl.constexpr, EPS: tl.constexpr, TRAINING: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Finished sums [3, C], and by them the factors [3, C] of dy = f₀·dx + f₁·y + f₂."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    in_c = c < C
    dx = tl.zeros([BP, BC], tl.float32)
    dxy = tl.zeros([BP, BC], tl.float32)
    tau = tl.zeros([BP, BC], tl.float32)
    for i in range(0, programs, BP):
        p = i + tl.arange(0, BP)
        at = partial + (p * 3)[:, None] * C + c[None, :]
        mask = (p < programs)[:, None] & in_c[None, :]
        dx += tl.load(at, mask=mask, other=0.0)
        dxy += tl.load(at + C, mask=mask, other=0.0)
        tau += tl.load(at + 2 * C, mask=mask, other=0.0)
    sum_dx = tl.sum(dx, 0)
    sum_dxy = tl.sum(dxy, 0)
    tl.store(sums + c, sum_dx, mask=in_c)
    tl.store(sums + C + c, sum_dxy, mask=in_c)
    tl.store(sums + 2 * C + c, tl.sum(tau, 0), mask=in_c)
    mu = tl.load(mean + c, mask=in_c, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var + c, mask=in_c, other=1.0) + EPS)
    a = tl.load(weight + c, mask=in_c, other=0.0) * rstd
    by_y = tl.zeros([BC], tl.float32)
    constant = tl.zeros([BC], tl.float32)
    if TRAINING:
        by_y = -a * rstd * sum_dxy / count
        constant = -a * sum_dx / count - by_y * mu
    tl.store(factors + c, a, mask=in_c)
    tl.store(factors + C + c, by_y, mask=in_c)
    tl.store(factors + 2 * C + c, constant, mask=in_c)


@triton.jit
def backward_norm_kernel(
    y, dx, factors, out, n, C: tl.constexpr, T: tl.constexpr, SHARED: tl.constexpr, TRAINING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """dy = a·(dx − mean(dx) − x̂·mean(dx·x̂)) from stored dx [T, M, C], perhaps in place; SHARED sums dx over T first."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    c = offset % C
    a = tl.load(factors + c, mask=mask, other=0.0)
    by_y = tl.load(factors + C + c, mask=mask, other=0.0)
    constant = tl.load(factors + 2 * C + c, mask=mask, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(T):
        d = tl.load(dx + t * n + offset, mask=mask, other=0.0).to(tl.float32)
        if SHARED:
            total += d
        else:
            dy = d * a
            if TRAINING:
                dy += tl.load(y + t * n + offset, mask=mask, other=0.0).to(tl.float32) * by_y + constant
            tl.store(out + t * n + offset, dy.to(out.dtype.element_ty), mask=mask)
    if SHARED:
        dy = total * a
        if TRAINING:
            dy += tl.load(y + offset, mask=mask, other=0.0).to(tl.float32) * by_y + constant
        tl.store(out + offset, dy.to(out.dtype.element_ty), mask=mask)
