"""STDP attention through spike counts: exact, linear in the number of tokens, nothing of size Nq x Nk.

The weight w_ij depends only on m = r_Q(i) − r_K(j), an integer in [−D_h, D_h]. With S[c] = Σ_{j: r_K(j)=c} V(j) and
Table[a, c] = w(a − c), the attention's output is out_i = (Table · S)[r_Q(i)]: O(N·D_h + D_h³) work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import spike_counts, weights_of_latency_difference
from .window import StdpWindow


def count_table(window: StdpWindow, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Table[a, c] = w(a − c) and its slope ∂w/∂a, each [(H,) D_h + 1, D_h + 1]; a counts query, c key spikes."""
    counts = torch.arange(head_dim + 1, dtype=_accumulator(like), device=like.device)
    _, _, tau_plus, tau_minus, t_max, _ = window.constants(counts)
    _, _, level_plus, level_minus = window.branches(counts)
    latency = t_max * (1 - counts / head_dim).unsqueeze(-1)  # [(H,) D_h + 1, 1]
    delta_t = latency - latency.transpose(-1, -2)
    table = weights_of_latency_difference(delta_t, window)
    query_first = delta_t < 0
    slope = torch.where(query_first, (table - level_plus) / tau_plus, (level_minus - table) / tau_minus)
    return table, slope * (-t_max / head_dim)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def integer_counts(spikes: Tensor) -> Tensor:
    """r = Σ_d of spikes [..., N, D_h], eq. 17, as int64 [..., N]."""
    return spike_counts(spikes).round().long()


def sum_by_count(counts: Tensor, rows: Tensor, bins: int) -> Tensor:
    """S[..., c, :] = sum of the rows [..., N, D] whose count [..., N] is c: [..., bins, D]."""
    out = rows.new_zeros(*rows.shape[:-2], bins, rows.shape[-1], dtype=_accumulator(rows))
    return out.scatter_add_(-2, counts.unsqueeze(-1).expand(rows.shape), rows.to(out.dtype))


def read_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """rows[..., counts, :]: [..., N, D]."""
    return rows.gather(-2, counts.unsqueeze(-1).expand(*counts.shape, rows.shape[-1]))


class TableAttention(torch.autograd.Function):
    """Forward and backward of s · w · V through spike counts; gradients equal those of the dense equation."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
        head_dim = query.shape[-1]
        count_q, count_k = integer_counts(query), integer_counts(key)
        ctx.save_for_backward(count_q, count_k, value)
        ctx.window, ctx.scale, ctx.head_dim, ctx.dtypes = window, scale, head_dim, (query.dtype, key.dtype)
        with torch.autocast(value.device.type, enabled=False):
            table, _ = count_table(window, head_dim, value)
            per_count = table @ sum_by_count(count_k, value, head_dim + 1)
        return (scale * read_rows(per_count, count_q)).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count_q, count_k, value = ctx.saved_tensors
        grad, bins = grads[0].to(_accumulator(value)) * ctx.scale, ctx.head_dim + 1
        table, slope = count_table(ctx.window, ctx.head_dim, value)
        grad_query = grad_key = grad_value = None
        grad_by_count = sum_by_count(count_q, grad, bins)
        if ctx.needs_input_grad[2]:
            grad_value = read_rows(table.transpose(-1, -2) @ grad_by_count, count_k).to(value.dtype)
        if ctx.needs_input_grad[0]:
            rows = read_rows(slope @ sum_by_count(count_k, value, bins), count_q)
            grad_query = _to_every_feature((grad * rows).sum(-1), ctx.head_dim, ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            rows = read_rows(slope.transpose(-1, -2) @ grad_by_count, count_k)
            grad_key = _to_every_feature(-(value * rows).sum(-1), ctx.head_dim, ctx.dtypes[1])
        return grad_query, grad_key, grad_value, None, None


def _to_every_feature(grad_count: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """A count is the plain sum of its features, so each feature's gradient is the count's."""
    return grad_count.to(dtype).unsqueeze(-1).expand(*grad_count.shape, head_dim)


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V of binary query, key [..., N, D_h] and of any value [..., Nk, D_v]: [..., Nq, D_v]."""
    return TableAttention.apply(query, key, value, window, scale)  # pyright: ignore[reportReturnType]
