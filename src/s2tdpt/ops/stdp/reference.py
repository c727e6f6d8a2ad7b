"""STDP attention as the paper writes it, eqs 17-23: the truth that every other implementation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from .window import StdpWindow


def weights_of_latency_difference(delta_t: Tensor, window: StdpWindow) -> Tensor:
    """Eqs 20-22 for Δt = t_Q − t_K [..., Nq, Nk] in ms: potentiation where the query fired first, else depression.

    Written without |Δt|, so that autograd gives ∂w/∂Δt = +f/τ on both branches and at ties (where |·| would give 0).
    """
    _, _, tau_plus, tau_minus, _, _ = window.constants(delta_t)
    a_plus, a_minus, level_plus, level_minus = window.branches(delta_t)  # levels: the offset, in the paper's window
    query_first = delta_t < 0
    zero = torch.zeros_like(delta_t)
    potentiation = a_plus * torch.exp(torch.where(query_first, delta_t, zero) / tau_plus)
    depression = -a_minus * torch.exp(-torch.where(query_first, zero, delta_t) / tau_minus)
    return torch.where(query_first, potentiation + level_plus, depression + level_minus)


def spike_counts(spikes: Tensor) -> Tensor:
    """r = Σ_d of spikes [..., N, D_h], eq. 17: [..., N], in float32 or wider, where latencies stay exact."""
    return spikes.sum(-1, dtype=torch.promote_types(spikes.dtype, torch.float32))


def weights(query: Tensor, key: Tensor, window: StdpWindow) -> Tensor:
    """Attention weights w [..., Nq, Nk] of spikes query [..., Nq, D_h] and key [..., Nk, D_h]: eqs 17-22."""
    count_q, count_k = spike_counts(query), spike_counts(key)  # eq. 17
    _, _, _, _, t_max, _ = window.constants(count_q)
    t_q = t_max * (1 - count_q / query.shape[-1]).unsqueeze(-1)  # eq. 18, [..., Nq, 1]
    t_k = t_max * (1 - count_k / key.shape[-1]).unsqueeze(-2)  # [..., 1, Nk]
    return weights_of_latency_difference(t_q - t_k, window)  # eqs 19-22


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V, eq. 23 before its neuron: [..., Nq, D_h]."""
    return scale * (weights(query, key, window).to(value.dtype) @ value)
