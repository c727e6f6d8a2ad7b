"""What the attention mechanisms do between their spikes and the neuron after mixing, on spikes [B·N, parts · D]."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from ..attention import IdentityAttention, MeanAttention, RandomAttention, SpikingSelfAttention, STDPAttention
from ..ops.stdp.table import count_table
from .synapses import FloatSynapse, IntegerSynapse, Synapse

MIXED = STDPAttention, RandomAttention, MeanAttention, IdentityAttention
"""The attention layers that have a mixing here; their heirs have not."""


class Mixing(Protocol):
    """Spikes of one step [B·N, parts · D] to the current of the mixing neuron [B·N, D], its sign turned."""

    def __call__(self, spikes: Tensor, tokens: int) -> Tensor: ...


def mixing(attention: SpikingSelfAttention, dtype: torch.dtype, *, integer: bool) -> Mixing:
    """The mixing of an attention layer that `MIXED` names; currents in `dtype`."""
    if isinstance(attention, STDPAttention):
        return StdpMixing(attention, dtype, integer=integer)
    if isinstance(attention, MeanAttention):
        return MeanMixing(attention.gain * attention.offset, dtype)
    return IdentityMixing(float(cast(IdentityAttention, attention).gain), dtype)


class StdpMixing:
    """STDP attention through spike counts (see `ops.stdp.table`): out_i = Y[r_Q(i)], Y[a] = Σ_j Table[a, r_K(j)] V_j.

    Rows of the table that the keys choose and V meet in one product for each head, whose rows the queries choose.
    """

    def __init__(self, attention: STDPAttention, dtype: torch.dtype, *, integer: bool) -> None:
        self.heads, self.dim, self.gain = attention.num_heads, attention.head_dim, attention.gain
        self.dtype = dtype
        table, _ = count_table(attention.window, self.dim, torch.empty((), dtype=torch.float64))
        bins = self.dim + 1
        self.rows = -table.transpose(-1, -2).reshape(-1, bins)  # [(H ·) r_K, r_Q]
        shared = table.ndim == 2
        self.first_row = torch.zeros(self.heads, 1, dtype=torch.int64)
        if not shared:
            self.first_row = torch.arange(self.heads).view(-1, 1) * bins
        ones = torch.eye(2 * self.heads, dtype=torch.float64).repeat_interleave(self.dim, 1)  # [2H, 2H · D_h]
        nothing = torch.zeros(2 * self.heads, dtype=torch.float64)
        self.count: Synapse = IntegerSynapse(ones, nothing, 1) if integer else FloatSynapse(ones, nothing, dtype)

    def __call__(self, spikes: Tensor, tokens: int) -> Tensor:
        H, D, N = self.heads, self.dim, tokens
        B, bins = len(spikes) // N, D + 1
        counts = self.count(spikes[:, : 2 * H * D]).round_().long().view(B, N, 2, H)
        count_q, count_k = counts.unbind(2)
        rows = (self.rows * (self.gain / N)).to(self.dtype)
        weights = rows.index_select(0, (count_k.transpose(1, 2) + self.first_row).reshape(-1)).view(B * H, N, bins)
        value = spikes[:, 2 * H * D :].view(B, N, H, D).transpose(1, 2)
        value = value.to(self.dtype, memory_format=torch.contiguous_format).reshape(B * H, N, D)
        per_count = torch.bmm(weights.transpose(1, 2), value).view(-1, D)  # [B · H · bins, D]
        chosen = count_q + torch.arange(0, B * H * bins, bins).view(B, 1, H)
        return per_count.index_select(0, chosen.reshape(-1)).view(B * N, H * D)


class MeanMixing:
    """Every weight is the same."""

    def __init__(self, gain: float, dtype: torch.dtype) -> None:
        self.gain, self.dtype = gain, dtype

    def __call__(self, spikes: Tensor, tokens: int) -> Tensor:
        value = spikes.view(-1, tokens, spikes.shape[-1]).to(self.dtype)
        total = value.sum(1, keepdim=True).mul_(-self.gain / tokens)
        return total.repeat(1, tokens, 1).view(spikes.shape)


class IdentityMixing:
    """V goes through."""

    def __init__(self, gain: float, dtype: torch.dtype) -> None:
        self.gain, self.dtype = gain, dtype

    def __call__(self, spikes: Tensor, tokens: int) -> Tensor:
        return spikes.to(self.dtype) * -self.gain
