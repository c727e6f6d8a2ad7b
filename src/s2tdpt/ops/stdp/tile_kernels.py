"""Triton kernels of STDP attention for short sequences: one dense tile a head, the count table on chip."""

from __future__ import annotations

import triton
import triton.language as tl

from ..norm_lif.kernels import _charge, _reset, _surrogate, _through_reset
from .kernels import _load_tile, _weights


@triton.jit
def tile_forward_kernel(
    q, k, v, out, current, counts, window, inv_tau, scale, N, H, all_heads,
    stride_t, stride_b, stride_h, stride_n, out_t, out_b, out_h, out_n,
    T: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    FIRE: tl.constexpr, THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr,
):  # fmt: skip
    """s·w·V of one head of one image, all T steps, through the neuron if FIRE; keeps spike counts and the current.

    counts [2, T, B, H, N]: of queries, then of keys. The current is laid out as out.
    """
    pid = tl.program_id(0).to(tl.int64)  # 64 bits: offsets may pass 2³¹
    head = pid % H
    image = pid // H
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    membrane = tl.full([BN, BD], REST, tl.float32)
    tau = tl.load(inv_tau)
    for t in tl.static_range(T):
        base = (pid * 0 + t) * stride_t + image * stride_b + head * stride_h
        r_q = tl.sum(_load_tile(q, base, stride_n, n, d, N, D), 1)
        r_k = tl.sum(_load_tile(k, base, stride_n, n, d, N, D), 1)
        to_count = counts + (t * all_heads + pid) * N + n
        tl.store(to_count, r_q.to(tl.uint8), mask=n < N)
        tl.store(to_count + (pid * 0 + all_heads) * (T * N), r_k.to(tl.uint8), mask=n < N)
        values = _load_tile(v, base, stride_n, n, d, N, D)
        w, _ = _weights(r_q[:, None] - r_k[None, :], window, head)
        drive = (scale * tl.dot(w.to(DOT), values.to(DOT), input_precision=PRECISION)).to(out.dtype.element_ty)
        at = (pid * 0 + t) * out_t + image * out_b + head * out_h + n.to(tl.int64)[:, None] * out_n + d[None, :]
        if FIRE:
            tl.store(current + at, drive, mask=mask)
            h = _charge(membrane, drive.to(tl.float32), tau, REST, DECAY_INPUT)
            drive = (h >= THRESHOLD).to(tl.float32).to(out.dtype.element_ty)
            membrane = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
        tl.store(out + at, drive, mask=mask)


@triton.jit
def neuron_backward_kernel(
    current, grad_spikes, grad_current, inv_tau, partial_tau, n,
    T: tl.constexpr, THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr,
    DETACH: tl.constexpr, ALPHA: tl.constexpr, ATAN: tl.constexpr, LEARN_TAU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the current into BLOCK neurons over all T steps; the membranes are integrated again."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n += first * 0  # 64 bits: T·n may pass 2³¹
    offset = first + tl.arange(0, BLOCK)
    mask = offset < n
    k = tl.load(inv_tau)
    v = tl.full([BLOCK], REST, tl.float32)
    charged = ()
    by_tau = ()
    for t in tl.static_range(T):
        x = tl.load(current + t * n + offset, mask=mask, other=0.0).to(tl.float32)
        if LEARN_TAU:
            by_tau = by_tau + (x - (v - REST) if DECAY_INPUT else REST - v,)
        h = _charge(v, x, k, REST, DECAY_INPUT)
        charged = charged + (h,)
        v = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
    grad_v = tl.zeros([BLOCK], tl.float32)
    sum_tau = tl.zeros([BLOCK], tl.float32)
    for back in tl.static_range(T):
        at = (T - 1 - back) * n + offset
        h = charged[T - 1 - back]
        slope = _surrogate(h - THRESHOLD, ALPHA, ATAN)
        grad = tl.load(grad_spikes + at, mask=mask, other=0.0).to(tl.float32)
        grad_h = grad * slope + _through_reset(h, grad_v, slope, THRESHOLD, REST, SOFT, DETACH)
        grad_v = grad_h * (1.0 - k)
        if LEARN_TAU:
            sum_tau += tl.where(mask, grad_h * by_tau[T - 1 - back], 0.0)
        dx = grad_h * k if DECAY_INPUT else grad_h
        tl.store(grad_current + at, dx.to(grad_current.dtype.element_ty), mask=mask)
    if LEARN_TAU:
        tl.store(partial_tau + tl.program_id(0), tl.sum(sum_tau, 0))


@triton.jit
def tile_backward_kernel(
    counts, v, grad_current, grad_q, grad_k, grad_v, window, scale, N, H, all_heads, steps, v_start,
    stride_t, stride_b, stride_h, stride_n, out_t, out_b, out_h, out_n, to_t, to_b, to_h, to_n,
    D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Gradients of one head of one image at one step, from spike counts and V (BITS: packed, from element v_start)."""
    pid = tl.program_id(0).to(tl.int64)  # 64 bits: offsets may pass 2³¹
    t = pid // all_heads
    head = pid % H
    image = (pid % all_heads) // H
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    to_count = counts + pid * N + n
    r_q = tl.load(to_count, mask=n < N, other=0).to(tl.float32)
    r_k = tl.load(to_count + (pid * 0 + steps) * all_heads * N, mask=n < N, other=0).to(tl.float32)
    base = t * stride_t + image * stride_b + head * stride_h
    if BITS:
        place = (v_start + base) + n.to(tl.int64)[:, None] * stride_n + d[None, :]
        byte = tl.load(v + place // 8, mask=mask, other=0).to(tl.int32)
        values = ((byte >> (place % 8).to(tl.int32)) & 1).to(tl.float32)
    else:
        values = _load_tile(v, base, stride_n, n, d, N, D)
    grad_at = t * out_t + image * out_b + head * out_h
    grad = (scale * _load_tile(grad_current, grad_at, out_n, n, d, N, D)).to(DOT)
    w, slope = _weights(r_q[:, None] - r_k[None, :], window, head)
    where = (t * to_t + image * to_b + head * to_h) + n.to(tl.int64)[:, None] * to_n + d[None, :]
    to_v = tl.dot(tl.trans(w.to(DOT)), grad, input_precision=PRECISION)
    tl.store(grad_v + where, to_v.to(grad_v.dtype.element_ty), mask=mask)
    grad_w = tl.dot(grad, tl.trans(values.to(DOT)), input_precision=PRECISION) * slope
    flat = tl.zeros([BN, BD], tl.float32)
    tl.store(grad_q + where, (tl.sum(grad_w, 1)[:, None] + flat).to(grad_q.dtype.element_ty), mask=mask)
    tl.store(grad_k + where, (flat - tl.sum(grad_w, 0)[:, None]).to(grad_k.dtype.element_ty), mask=mask)
