"""Triton kernels of STDP attention: one dense tile a head for short sequences, spike-count buckets for long ones.

Spikes are [Z, H, N, D_h] with any strides but the last. `window` is [H, 5]: a_plus, a_minus, and the exponents a count
t_max/(D_h·tau_plus)·log2(e) and t_max/(D_h·tau_minus)·log2(e), and the offset.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..norm_lif.kernels import _charge, _reset, _surrogate


@triton.jit
def _weights(m, window, head):
    """w and ∂w/∂m at m = r_Q − r_K (eqs 19-22): the exponent falls with |m| on both sides; at ties, depression."""
    a_plus = tl.load(window + head * 5)
    a_minus = tl.load(window + head * 5 + 1)
    e_plus = tl.load(window + head * 5 + 2)
    e_minus = tl.load(window + head * 5 + 3)
    offset = tl.load(window + head * 5 + 4)
    query_first = m > 0
    f = tl.where(query_first, a_plus, a_minus) * tl.exp2(tl.where(query_first, -m * e_plus, m * e_minus))
    slope = -0.6931471805599453 * f * tl.where(query_first, e_plus, e_minus)
    return tl.where(query_first, f, -f) + offset, slope


@triton.jit
def _load_tile(x, base, stride_n, n, d, N, D: tl.constexpr):
    mask = (n < N)[:, None] & (d < D)[None, :]
    return tl.load(x + base + n.to(tl.int64)[:, None] * stride_n + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def tile_forward_kernel(
    q, k, v, out, window, inv_tau, scale, N, H,
    stride_t, stride_b, stride_h, stride_n, out_t, out_b, out_h, out_n,
    T: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, FIRE: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr,
):  # fmt: skip
    """s·w·V of one head of one image, all T steps, through the neuron if FIRE."""
    head = tl.program_id(0) % H
    image = (tl.program_id(0) // H).to(tl.int64)
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    membrane = tl.full([BN, BD], REST, tl.float32)
    tau = tl.load(inv_tau)
    for t in tl.static_range(T):
        base = t * stride_t + image * stride_b + head * stride_h
        r_q = tl.sum(_load_tile(q, base, stride_n, n, d, N, D), 1)
        r_k = tl.sum(_load_tile(k, base, stride_n, n, d, N, D), 1)
        values = _load_tile(v, base, stride_n, n, d, N, D)
        w, _ = _weights(r_q[:, None] - r_k[None, :], window, head)
        current = scale * tl.dot(w.to(DOT), values.to(DOT), input_precision=PRECISION)
        if FIRE:
            h = _charge(membrane, current, tau, REST, DECAY_INPUT)
            current = (h >= THRESHOLD).to(tl.float32)
            membrane = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
        at = out + t * out_t + image * out_b + head * out_h + n.to(tl.int64)[:, None] * out_n + d[None, :]
        tl.store(at, current.to(out.dtype.element_ty), mask=mask)


@triton.jit
def tile_backward_kernel(
    q, k, v, grad_out, grad_q, grad_k, grad_v, window, inv_tau, partial_tau, scale, N, H,
    stride_t, stride_b, stride_h, stride_n, out_t, out_b, out_h, out_n, to_t, to_b, to_h, to_n,
    T: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, FIRE: tl.constexpr,
    THRESHOLD: tl.constexpr, REST: tl.constexpr, SOFT: tl.constexpr, DECAY_INPUT: tl.constexpr,
    DETACH: tl.constexpr, ALPHA: tl.constexpr, ATAN: tl.constexpr, LEARN_TAU: tl.constexpr,
):  # fmt: skip
    """Gradients of one head of one image; currents and membranes are computed again, on chip."""
    head = tl.program_id(0) % H
    image = (tl.program_id(0) // H).to(tl.int64)
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    tau = tl.load(inv_tau)
    charged = ()
    before = ()
    inputs = ()
    if FIRE:
        membrane = tl.full([BN, BD], REST, tl.float32)
        for t in tl.static_range(T):
            base = t * stride_t + image * stride_b + head * stride_h
            r_q = tl.sum(_load_tile(q, base, stride_n, n, d, N, D), 1)
            r_k = tl.sum(_load_tile(k, base, stride_n, n, d, N, D), 1)
            values = _load_tile(v, base, stride_n, n, d, N, D)
            w, _ = _weights(r_q[:, None] - r_k[None, :], window, head)
            current = scale * tl.dot(w.to(DOT), values.to(DOT), input_precision=PRECISION)
            h = _charge(membrane, current, tau, REST, DECAY_INPUT)
            before = before + (membrane,)
            inputs = inputs + (current,)
            charged = charged + (h,)
            membrane = _reset(h, h >= THRESHOLD, THRESHOLD, REST, SOFT)
    carried = tl.zeros([BN, BD], tl.float32)
    sum_tau = tl.zeros([BN, BD], tl.float32)
    for back in tl.static_range(T):
        at = (T - 1 - back) * out_t + image * out_b + head * out_h + n.to(tl.int64)[:, None] * out_n + d[None, :]
        grad = tl.load(grad_out + at, mask=mask, other=0.0).to(tl.float32)
        if FIRE:
            h = charged[T - 1 - back]
            slope = _surrogate(h - THRESHOLD, ALPHA, ATAN)
            if SOFT:
                through = 1.0 if DETACH else 1.0 - THRESHOLD * slope
            else:
                through = 1.0 - (h >= THRESHOLD).to(tl.float32)
                if not DETACH:
                    through += (REST - h) * slope
            grad_h = grad * slope + carried * through
            carried = grad_h * (1.0 - tau)
            if DECAY_INPUT:
                grad = grad_h * tau
                if LEARN_TAU:
                    sum_tau += tl.where(mask, grad_h * (inputs[T - 1 - back] - (before[T - 1 - back] - REST)), 0.0)
            else:
                grad = grad_h
                if LEARN_TAU:
                    sum_tau += tl.where(mask, -grad_h * (before[T - 1 - back] - REST), 0.0)
        grad = tl.where(mask, grad * scale, 0.0)
        base = (T - 1 - back) * stride_t + image * stride_b + head * stride_h
        r_q = tl.sum(_load_tile(q, base, stride_n, n, d, N, D), 1)
        r_k = tl.sum(_load_tile(k, base, stride_n, n, d, N, D), 1)
        values = _load_tile(v, base, stride_n, n, d, N, D)
        w, slope_w = _weights(r_q[:, None] - r_k[None, :], window, head)
        to = (T - 1 - back) * to_t + image * to_b + head * to_h
        grad_w = tl.dot(grad.to(DOT), tl.trans(values.to(DOT)), input_precision=PRECISION) * slope_w
        grad_w = tl.where((n < N)[None, :], grad_w, 0.0)
        to_q = tl.sum(grad_w, 1)[:, None] + tl.zeros([BN, BD], tl.float32)
        to_k = -tl.sum(grad_w, 0)[:, None] + tl.zeros([BN, BD], tl.float32)
        to_v = tl.dot(tl.trans(w.to(DOT)), grad.to(DOT), input_precision=PRECISION)
        where = n.to(tl.int64)[:, None] * to_n + d[None, :]
        tl.store(grad_q + to + where, to_q.to(grad_q.dtype.element_ty), mask=mask)
        tl.store(grad_k + to + where, to_k.to(grad_k.dtype.element_ty), mask=mask)
        tl.store(grad_v + to + where, to_v.to(grad_v.dtype.element_ty), mask=mask)
    tl.store(partial_tau + tl.program_id(0), tl.sum(tl.sum(sum_tau, 1), 0))


@triton.jit
def bucket_sum_kernel(
    spikes, counts, rows, sums, N, per_program, programs, H, spikes_z, spikes_h, spikes_n, rows_z, rows_h, rows_n,
    COUNT: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums[z, h, p, c] = Σ rows of this program's tokens whose spike count is c; COUNT: counts first, and keeps it."""
    p = tl.program_id(0)
    zh = tl.program_id(1).to(tl.int64)
    z = zh // H
    head = zh % H
    d = tl.arange(0, BD)
    c = tl.arange(0, BC)
    total = tl.zeros([BC, BD], tl.float32)
    start = p * per_program
    stop = tl.minimum(start + per_program, N)
    for i in range(start, stop, BN):
        n = i + tl.arange(0, BN)
        if COUNT:
            r = tl.sum(_load_tile(spikes, z * spikes_z + head * spikes_h, spikes_n, n, d, stop, D), 1).to(tl.int32)
            tl.store(counts + zh * N + n, r.to(tl.uint8), mask=n < stop)
        else:
            r = tl.load(counts + zh * N + n, mask=n < stop, other=0).to(tl.int32)
        values = _load_tile(rows, z * rows_z + head * rows_h, rows_n, n, d, stop, D)
        hot = (c[:, None] == r[None, :]).to(DOT)
        total += tl.dot(hot, values.to(DOT), input_precision=PRECISION)
    at = sums + ((zh * programs + p) * BC + c)[:, None] * BD + d[None, :]
    tl.store(at, total)


@triton.jit
def bucket_table_kernel(
    sums, by_count, window, scale, programs, H, MODE: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
    KEEP: tl.constexpr, kept, FROM_KEPT: tl.constexpr,
):  # fmt: skip
    """by_count = M · Σ_p sums[p]. MODE 0: M = s·w(a − c); 1: its transpose; 2: s·∂w/∂a; 3: minus its transpose."""
    zh = tl.program_id(0).to(tl.int64)
    head = zh % H
    c = tl.arange(0, BC)
    d = tl.arange(0, BD)
    tile = c[:, None] * BD + d[None, :]
    total = tl.zeros([BC, BD], tl.float32)
    if FROM_KEPT:
        total = tl.load(kept + zh * BC * BD + tile)
    else:
        for p in range(programs):
            total += tl.load(sums + (zh * programs + p) * BC * BD + tile)
        if KEEP:
            tl.store(kept + zh * BC * BD + tile, total)
    if MODE == 0 or MODE == 2:
        m = c[:, None] - c[None, :]
    else:
        m = c[None, :] - c[:, None]
    w, slope = _weights(m.to(tl.float32), window, head)
    if MODE >= 2:
        w = slope
    if MODE == 3:
        w = -w
    tl.store(by_count + zh * BC * BD + tile, scale * tl.dot(w, total, input_precision="ieee"))


@triton.jit
def bucket_read_kernel(
    spikes, counts, by_count, out, N, H, spikes_z, spikes_h, spikes_n, out_z, out_h, out_n,
    D: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out_i = by_count[r_i], counting the spikes first and keeping the counts."""
    zh = tl.program_id(1).to(tl.int64)
    z = zh // H
    head = zh % H
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (n < N)[:, None] & (d < D)[None, :]
    r = tl.sum(_load_tile(spikes, z * spikes_z + head * spikes_h, spikes_n, n, d, N, D), 1).to(tl.int32)
    tl.store(counts + zh * N + n, r.to(tl.uint8), mask=n < N)
    rows = tl.load(by_count + zh * BC * BD + r[:, None] * BD + d[None, :], mask=mask, other=0.0)
    at = out + z * out_z + head * out_h + n.to(tl.int64)[:, None] * out_n + d[None, :]
    tl.store(at, rows.to(out.dtype.element_ty), mask=mask)


@triton.jit
def bucket_backward_kernel(
    v, grad_out, counts_q, counts_k, for_v, for_q, for_k, grad_q, grad_k, grad_v, N, NK, H,
    v_z, v_h, v_n, out_z, out_h, out_n, q_z, q_h, q_n, k_z, k_h, k_n,
    D: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """∂V_j = for_v[r_j]; ∂r_Q(i) = g_i · for_q[r_i]; ∂r_K(j) = V_j · for_k[r_j], the same for each of its features."""
    zh = tl.program_id(1).to(tl.int64)
    z = zh // H
    head = zh % H
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    d = tl.arange(0, BD)
    table = zh * BC * BD
    flat = tl.zeros([BN, BD], tl.float32)
    mask = (n < N)[:, None] & (d < D)[None, :]
    r = tl.load(counts_q + zh * N + n, mask=n < N, other=0).to(tl.int32)
    grad = _load_tile(grad_out, z * out_z + head * out_h, out_n, n, d, N, D)
    rows = tl.load(for_q + table + r[:, None] * BD + d[None, :], mask=mask, other=0.0)
    at = grad_q + z * q_z + head * q_h + n.to(tl.int64)[:, None] * q_n + d[None, :]
    tl.store(at, (tl.sum(grad * rows, 1)[:, None] + flat).to(grad_q.dtype.element_ty), mask=mask)
    mask = (n < NK)[:, None] & (d < D)[None, :]
    r = tl.load(counts_k + zh * NK + n, mask=n < NK, other=0).to(tl.int32)
    values = _load_tile(v, z * v_z + head * v_h, v_n, n, d, NK, D)
    rows = tl.load(for_k + table + r[:, None] * BD + d[None, :], mask=mask, other=0.0)
    at = grad_k + z * k_z + head * k_h + n.to(tl.int64)[:, None] * k_n + d[None, :]
    tl.store(at, (tl.sum(values * rows, 1)[:, None] + flat).to(grad_k.dtype.element_ty), mask=mask)
    rows = tl.load(for_v + table + r[:, None] * BD + d[None, :], mask=mask, other=0.0)
    at = grad_v + z * k_z + head * k_h + n.to(tl.int64)[:, None] * k_n + d[None, :]
    tl.store(at, rows.to(grad_v.dtype.element_ty), mask=mask)
