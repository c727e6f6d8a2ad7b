"""The dense equation, the spike-count table and the synapse array are one function, and it is the paper's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from s2tdpt.ops import StdpWindow, stdp_attention, stdp_weights

from . import oracle
from .cases import Case, assert_close, cases, examples, spikes

SMALL = cases(max_tokens=7, max_dim=6, lead=2)


def run(case: Case, implementation: str) -> Tensor:
    return stdp_attention(*case.inputs, case.window, scale=case.scale, implementation=implementation)  # type: ignore


@examples(80)
@given(case=SMALL)
def test_every_implementation_is_the_papers_equation(case: Case) -> None:
    expected = oracle.attention(*case.inputs, case.window, case.scale)
    for implementation in ("dense", "table", "event", "auto"):
        assert_close(run(case, implementation), expected)


@examples(150)
@given(case=cases(max_tokens=300, max_dim=96))
def test_table_equals_dense(case: Case) -> None:
    assert_close(run(case, "table"), run(case, "dense"))


@examples(12)
@given(case=cases(max_tokens=5000, max_dim=96))
def test_table_equals_dense_with_thousands_of_tokens(case: Case) -> None:
    assert_close(run(case, "table"), run(case, "dense"))


@pytest.mark.parametrize(("n_q", "n_k"), [(5000, 5000), (1, 5000), (5000, 1)])
def test_table_equals_dense_at_5000_tokens(n_q: int, n_k: int) -> None:
    query, key = spikes(n_q, 32, density=0.15), spikes(n_k, 32, density=0.2, seed=1)
    case = Case(query, key, spikes(n_k, 8, density=0.3, seed=2), StdpWindow(a_minus=0.3, tau_minus=7.0), 1.0)
    rows = [
        run(replace(case, query=some), "dense") for some in query.split(250)
    ]  # 25 million synapses take long at once
    assert_close(run(case, "table"), torch.cat(rows))


@examples(60)
@given(case=cases(max_tokens=40, max_dim=24))
def test_event_equals_dense(case: Case) -> None:
    assert_close(run(case, "event"), run(case, "dense"))


@examples(100)
@given(case=cases(max_tokens=120, max_dim=96), seed=st.integers(0, 1000))
def test_gradients_of_table_equal_those_of_dense(case: Case, seed: int) -> None:
    def gradients(implementation: str) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in case.inputs]
        out = run(replace(case, query=leaves[0], key=leaves[1], value=leaves[2]), implementation)
        outer = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed))
        return torch.autograd.grad(out, leaves, outer)

    for table, dense in zip(gradients("table"), gradients("dense"), strict=True):
        assert_close(table, dense)


@pytest.mark.parametrize("wanted", range(3))
def test_each_input_alone_gets_its_gradient(wanted: int) -> None:
    case = Case(*(spikes(2, 5, 4, density=0.4, seed=s) for s in range(3)), StdpWindow(), 0.7)
    grads = {}
    for implementation in ("dense", "table"):
        inputs = [x.clone().requires_grad_(i == wanted) for i, x in enumerate(case.inputs)]
        run(replace(case, query=inputs[0], key=inputs[1], value=inputs[2]), implementation).square().sum().backward()
        assert [x.grad is not None for x in inputs] == [i == wanted for i in range(3)]
        grads[implementation] = inputs[wanted].grad
    assert_close(grads["table"], grads["dense"])
    assert grads["dense"].abs().max() > 0


@examples(40)
@given(case=SMALL)
def test_weights_are_eq_22(case: Case) -> None:
    weights = stdp_weights(case.query, case.key, case.window)
    assert weights.shape == (*case.query.shape[:-1], case.key.shape[-2])
    each_key = torch.eye(case.key.shape[-2], dtype=torch.float64).expand(*case.key.shape[:-1], case.key.shape[-2])
    assert_close(weights, oracle.attention(case.query, case.key, each_key, case.window, 1.0))


def test_weights_of_the_default_window_lie_between_0_and_1_lowest_at_a_tie_and_highest_just_after() -> None:
    counts = torch.arange(33)
    ladder = (torch.arange(32) < counts.unsqueeze(-1)).double()  # token r fires r of 32 features
    weights = stdp_weights(ladder, ladder, StdpWindow())
    assert weights.min() > 0
    assert weights.max() < 1
    m = counts.unsqueeze(-1) - counts
    assert set(m[weights == weights.min()].tolist()) == {0}
    top = m[(weights.max() - weights) < 1e-12]
    assert set(top.tolist()) == {1}


def test_without_a_jump_weights_rise_step_by_step_through_the_offset() -> None:
    counts = torch.arange(33)
    ladder = (torch.arange(32) < counts.unsqueeze(-1)).double()
    weights = stdp_weights(ladder, ladder, StdpWindow(jump=False))
    by_difference = torch.cat([weights[0].flip(0)[:-1], weights[:, 0]])  # m = -32 .. 32
    steps = by_difference.diff()
    assert by_difference[32] == 0.5
    assert steps.min() > 0
    assert float(steps.max()) == pytest.approx(0.45 * (1 - math.exp(-40 / 32 / 20)))  # around the tie


def test_a_window_per_head_is_a_scalar_window_in_each_head() -> None:
    query, key, value = (spikes(2, 3, 9, 6, density=0.4, seed=s) for s in range(3))
    a_plus, t_max = (0.1, 0.2, 0.3), (20.0, 40.0, 80.0)
    for implementation in ("dense", "table", "event"):
        together = stdp_attention(
            query, key, value, StdpWindow(a_plus=a_plus, t_max=t_max), implementation=implementation
        )
        for h in range(3):
            one = StdpWindow(a_plus=a_plus[h], t_max=t_max[h])
            alone = stdp_attention(query[:, h], key[:, h], value[:, h], one, implementation=implementation)
            assert_close(together[:, h], alone)


def test_queries_with_equal_counts_get_equal_rows() -> None:
    query = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.float64)
    out = stdp_attention(query, query, spikes(3, 5, density=0.6), StdpWindow(), implementation="table")
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
