"""STDP attention of long sequences, by spike counts, against the equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from s2tdpt.ops import stdp_attention
from s2tdpt.ops.stdp import buckets
from s2tdpt.ops.stdp.buckets import stdp_buckets_op
from s2tdpt.ops.stdp.launch import window_table

from .attention import WINDOWS, check_attention, make_spikes, make_window
from .cases import DTYPES, all_pairs, describe, noise

TOKENS = ((129, 129), (7, 200), (300, 64), (1, 130), (140, 1), (5, 6))  # queries, keys

CELLS = all_pairs(
    lambda D, heads, **_: D <= 32 or heads == 1,
    tokens=TOKENS, D=(8, 20, 32, 96), heads=(1, 2), dtype=DTYPES, window=WINDOWS,
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_pairs(cell: dict[str, Any]) -> None:
    queries, keys = cell["tokens"]
    inputs = make_spikes(1, cell["heads"], queries, cell["D"], keys=keys, dtype=cell["dtype"])
    check_attention(inputs, make_window(cell["window"], cell["heads"]))


def test_leading_dimensions() -> None:
    check_attention(make_spikes(130, 8, keys=130), make_window("asymmetric", 1))
    check_attention(make_spikes(2, 1, 2, 3, 8, keys=5), make_window("per head", 2))


def test_spikes_and_gradients_in_any_memory_order() -> None:
    query, key, value = make_spikes(1, 2, 130, 8, keys=131)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key)]
    turned.append(value.transpose(2, 3).contiguous().transpose(2, 3))
    window = make_window("per head", 2)
    check_attention((turned[0], turned[1], turned[2]), window)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out = stdp_attention(*leaves, window, implementation="triton")
    grad = noise(*out.shape, seed=1)
    for a, b in (
        (grad, grad.transpose(1, 3).contiguous().transpose(1, 3)),
        (torch.ones_like(grad), torch.ones((), device=grad.device).expand_as(grad)),
    ):
        dense, strided = (torch.autograd.grad(out, leaves, g, retain_graph=True) for g in (a, b))
        for x, y in zip(dense, strided, strict=True):
            assert torch.equal(x, y)


def test_no_program_or_all_of_them_sum_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, whether one program goes through all tokens or every 128 have their own."""
    inputs = make_spikes(1, 1, 300, 8, keys=300)
    assert buckets._split(300, 1)[0] == 3
    check_attention(inputs, make_window("asymmetric", 1))
    monkeypatch.setattr(buckets, "_split", lambda tokens, rows: (1, -(-tokens // 128) * 128))
    check_attention(inputs, make_window("asymmetric", 1))


def test_counts_that_are_kept() -> None:
    query, key, value = make_spikes(2, 2, 70, 20, keys=33)
    table = window_table(make_window("paper's", 2), 2, 20, query.device)
    _, counts_q, counts_k, _ = stdp_buckets_op(query, key, value, table, 1.0)
    assert torch.equal(counts_q.float(), query.sum(-1))
    assert torch.equal(counts_k.float(), key.sum(-1))


@pytest.mark.parametrize("fires", [False, True])
def test_all_neurons_silent_or_all_firing(fires: bool) -> None:
    inputs = tuple(torch.full_like(x, fires) for x in make_spikes(1, 1, 129, 8, keys=130))
    check_attention(inputs, make_window("asymmetric", 1))  # type: ignore[arg-type]
