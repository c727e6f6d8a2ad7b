"""The synapse array: it adds rows and reads rows, and says exactly how often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2tdpt.errors import InputError
from s2tdpt.ops import EventCounts, StdpWindow, stdp_attention, stdp_event_counts

from . import oracle
from .cases import Case, assert_close, cases, examples, spikes


@examples(60)
@given(case=cases(max_tokens=7, max_dim=5, lead=2))
def test_counts_and_output_are_those_of_a_brute_force_array(case: Case) -> None:
    expected, additions, reads = oracle.synapse_array(*case.inputs, case.window, case.scale)
    assert stdp_event_counts(*case.inputs) == EventCounts(additions, reads)
    assert_close(stdp_attention(*case.inputs, case.window, scale=case.scale, implementation="event"), expected)


def test_additions_at_the_papers_geometry() -> None:
    """N 64, D 384, 12 heads, 15 % firing: 122 k additions against the equation's 236 k; the table multiplies 418 k."""
    tokens, width, heads, rate = 64, 384, 12, 0.15
    head_dim = width // heads
    value = torch.zeros(heads * tokens * head_dim)
    value[: round(rate * value.numel())] = 1
    value = value[torch.randperm(len(value), generator=torch.Generator().manual_seed(0))].view(heads, tokens, head_dim)
    query, key = (spikes(heads, tokens, head_dim, density=rate, seed=s) for s in (1, 2))

    of_the_equation = tokens * int(value.count_nonzero())  # every V spike reaches every query
    counts = stdp_event_counts(query, key, value)
    assert round(of_the_equation / 1000) == 236
    assert round(counts.additions / 1000) == 122
    assert counts.table_reads == tokens * width
    assert round((head_dim + 1) ** 2 * width / 1000) == 418


def test_counts_depend_on_value_spikes_alone_and_none_means_no_additions() -> None:
    query, key = (spikes(2, 9, 4, density=d) for d in (0.2, 0.9))
    silent = torch.zeros(2, 9, 6)
    assert stdp_event_counts(query, key, silent) == EventCounts(additions=0, table_reads=2 * 9 * 6)
    assert stdp_event_counts(query, key, silent + 1).additions == 2 * 9 * 6 * 5
    assert stdp_event_counts(key, query, (silent + 1).bool()).additions == 2 * 9 * 6 * 5


@pytest.mark.parametrize("which", range(3))
def test_event_refuses_gradients_but_runs_without_them(which: int) -> None:
    inputs = [spikes(3, 4, density=0.5, seed=s).requires_grad_(s == which) for s in range(3)]
    with pytest.raises(InputError, match="inference"):
        stdp_attention(*inputs, StdpWindow(), implementation="event")
    with torch.no_grad():
        out = stdp_attention(*inputs, StdpWindow(), implementation="event")
    assert_close(out, stdp_attention(*inputs, StdpWindow(), implementation="dense"))


class Products(TorchDispatchMode):
    """Names of the operations that multiply two tensors of more than one element."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if (
            name in ("mul", "mm", "bmm", "matmul", "addmm")
            and sum(isinstance(a, Tensor) and a.ndim > 0 for a in args) > 1
        ):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("implementation", "multiplies"), [("event", False), ("table", True), ("dense", True)])
def test_event_never_multiplies_two_activations(implementation: str, multiplies: bool) -> None:
    inputs = [spikes(2, 6, 4, density=0.5, seed=s) for s in range(3)]
    with Products() as products:
        stdp_attention(*inputs, StdpWindow(), implementation=implementation)  # type: ignore
    assert bool(products.seen) is multiplies, products.seen
