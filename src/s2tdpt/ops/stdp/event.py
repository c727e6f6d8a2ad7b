"""STDP attention spike by spike, as a synapse array would do it: inference only, additions and table reads only.

A crossbar holds the 2·D_h + 1 synaptic values that STDP has programmed, as rows Row[c] = (w(a − c))_{a=0..D_h}.
Each V spike at (token j, feature d) adds row r_K(j) to the accumulators Y[:, d]; then every query reads Y[r_Q(i)].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .table import count_table, integer_counts, read_rows
from .window import StdpWindow


@dataclass(frozen=True)
class EventCounts:
    """Operations of the event form, summed over all leading dimensions."""

    additions: int
    """One for each accumulator that a V spike adds to: V spikes x (D_h + 1)."""
    table_reads: int
    """One for each output element that a query reads: Nq x D_v."""


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V of binary spikes, processing V's spikes one after another; no product of two activations."""
    bins, features = query.shape[-1] + 1, value.shape[-1]
    lead = value.shape[:-2]
    table, _ = count_table(window, query.shape[-1], value)
    crossbar = (scale * table).expand(*lead, bins, bins)
    rows = crossbar.reshape(-1, bins, bins).transpose(-1, -2)  # rows[b, c]: key count c against every query count
    count_k = integer_counts(key).reshape(-1, key.shape[-2])
    accumulators = rows.new_zeros(len(count_k), features, bins)
    for b, j, d in value.reshape(-1, *value.shape[-2:]).nonzero().tolist():
        accumulators[b, d] += rows[b, count_k[b, j]]
    per_count = accumulators.transpose(-1, -2).reshape(*lead, bins, features)
    return read_rows(per_count, integer_counts(query)).to(value.dtype)


def event_counts(query: Tensor, key: Tensor, value: Tensor) -> EventCounts:
    """What `attention` does for these spikes, counted, not estimated."""
    spikes = int(torch.count_nonzero(value))
    return EventCounts(additions=spikes * (key.shape[-1] + 1), table_reads=query[..., 0].numel() * value.shape[-1])
