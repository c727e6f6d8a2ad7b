"""Triton kernels of STDP attention for long sequences: sums by spike count, nothing of size N x N."""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import _load_tile, _weights


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
    BK: tl.constexpr, KEEP: tl.constexpr, kept, FROM_KEPT: tl.constexpr,
):  # fmt: skip
    """by_count = M · Σ_p sums[p]. MODE 0: M = s·w(a − c); 1: its transpose; 2: s·∂w/∂a; 3: minus its transpose."""
    zh = tl.program_id(0).to(tl.int64)
    head = zh % H
    c = tl.arange(0, BC)
    d = tl.arange(0, BD)
    product = tl.zeros([BC, BD], tl.float32)
    for start in range(0, BC, BK):
        summed = start + tl.arange(0, BK)
        tile = summed[:, None] * BD + d[None, :]
        total = tl.zeros([BK, BD], tl.float32)
        if FROM_KEPT:
            total = tl.load(kept + zh * BC * BD + tile)
        else:
            for p in range(programs):
                total += tl.load(sums + (zh * programs + p) * BC * BD + tile)
            if KEEP:
                tl.store(kept + zh * BC * BD + tile, total)
        if MODE == 0 or MODE == 2:
            m = c[:, None] - summed[None, :]
        else:
            m = summed[None, :] - c[:, None]
        w, slope = _weights(m.to(tl.float32), window, head)
        if MODE >= 2:
            w = slope
        if MODE == 3:
            w = -w
        product += tl.dot(w, total, input_precision="ieee")
    tl.store(by_count + zh * BC * BD + (c[:, None] * BD + d[None, :]), scale * product)


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
