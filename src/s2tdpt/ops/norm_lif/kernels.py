"""Triton kernels of batch normalisation + LIF over T: the neuron, the statistics and the sums they share.

Tensors are [T, M, C] with channels last. Membranes live in float32 registers and are never stored: the backward pass
integrates them again. Sums over rows go through per-program partial sums, so results do not depend on timing.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # without inline assembly, that is


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
def _exp2(x):
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _reciprocal(x):
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def _surrogate(u, ALPHA: tl.constexpr, ATAN: tl.constexpr):
    """dS/du in as few instructions as there are: exp2 and 1/x to 1 ulp or two, without a path for denormal numbers."""
    if ATAN:
        z = 1.5707963267948966 * ALPHA * u
        return (ALPHA / 2) * _reciprocal(1.0 + z * z)
    z = ALPHA * _exp2(tl.abs(u) * (-1.4426950408889634 * ALPHA))  # the derivative of σ is even: this never overflows
    r = _reciprocal(1.0 + z * (1.0 / ALPHA))
    return z * r * r


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
    n = rows * 1.0  # a count of 1 is a constant to the compiler: it has no .to()
    delta = tl.sum(first, 0) / n
    shift = tl.load(y + c, mask=in_c, other=0.0).to(tl.float32)
    tl.store(mean + c, shift + delta, mask=in_c)
    tl.store(var + c, tl.maximum(tl.sum(second, 0) / n - delta * delta, 0.0), mask=in_c)


@triton.jit
def _affine(weight, bias, mean, var, c, in_c, EPS: tl.constexpr):
    """BN as a·y + b: a = γ·rstd, b = β − μ·a; and rstd, μ."""
    mu = tl.load(mean + c, mask=in_c, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(var + c, mask=in_c, other=1.0) + EPS)
    a = tl.load(weight + c, mask=in_c, other=0.0) * rstd
    return a, tl.load(bias + c, mask=in_c, other=0.0) - mu * a, rstd, mu
