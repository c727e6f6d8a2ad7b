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
    wide = tl.full([], C, tl.int64)  # 64 bits: rows times C may pass 2³¹
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
