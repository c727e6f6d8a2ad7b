"""Gradients: finite differences where they hold, and the rule for ties where they cannot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s2tdpt.ops import StdpWindow, stdp_attention, stdp_weights

from .cases import assert_close, spikes

WINDOW = StdpWindow(a_plus=(0.45, 0.2), a_minus=(0.4, 0.3), tau_plus=(20.0, 9.0), tau_minus=11.0, offset=(0.5, 0.1))


def _real_counts(*shape: int, offset: float) -> Tensor:
    """Real-valued "spikes" whose counts are integers plus `offset`."""
    return spikes(*shape, density=0.4) + offset / shape[-1]


def test_dense_passes_finite_differences_in_real_counts_away_from_ties() -> None:
    query, key = _real_counts(2, 5, 6, offset=0.25).requires_grad_(), _real_counts(2, 4, 6, offset=0.0).requires_grad_()
    value = spikes(2, 4, 3, density=0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k, v: stdp_attention(q, k, v, WINDOW, scale=0.7, implementation="dense"), (query, key, value)
    )


def test_table_passes_finite_differences_in_values() -> None:
    query, key = spikes(2, 5, 6, density=0.4), spikes(2, 4, 6, density=0.6, seed=1)
    value = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: stdp_attention(query, key, v, WINDOW, scale=0.7, implementation="table"), value
    )


@pytest.mark.parametrize("implementation", ["dense", "table"])
@pytest.mark.parametrize(("r_q", "r_k"), [(3, 3), (0, 0), (8, 8), (5, 3), (2, 7)])
@pytest.mark.parametrize("jump", [True, False])
def test_slope_of_one_synapse(implementation: str, r_q: int, r_k: int, jump: bool) -> None:
    """∂w/∂Δt = +f/τ on both branches and at ties (−f/τ without a jump), and Δt = T_max (r_K − r_Q)/D_h."""
    window = StdpWindow(a_plus=0.45, a_minus=0.3, tau_plus=20.0, tau_minus=9.0, t_max=40.0, jump=jump)
    query, key = ((torch.arange(8) < r).double().unsqueeze(0).requires_grad_() for r in (r_q, r_k))
    out = stdp_attention(query, key, torch.ones(1, 1, dtype=torch.float64), window, implementation=implementation)
    grad_q, grad_k = torch.autograd.grad(out.sum(), (query, key))
    delta_t = 40.0 * (r_k - r_q) / 8
    slope = 0.45 / 20 * math.exp(delta_t / 20) if delta_t < 0 else 0.3 / 9 * math.exp(-delta_t / 9)
    slope = slope if jump else -slope
    assert_close(grad_q, torch.full((1, 8), -slope * 40 / 8, dtype=torch.float64))
    assert_close(grad_k, torch.full((1, 8), +slope * 40 / 8, dtype=torch.float64))


def test_a_literal_absolute_value_would_lose_the_gradient_at_ties() -> None:
    """Why the equation is not written with |Δt|: its autograd is 0 where Δt is 0, and ties are common."""
    delta_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    literal = -0.45 * torch.exp(-delta_t.abs() / 20)
    assert torch.autograd.grad(literal.sum(), delta_t)[0].item() == 0

    token = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(stdp_weights(token, token.detach(), StdpWindow()).sum(), token)
    assert grad.abs().min() > 0


def test_a_second_derivative_of_the_table_is_refused_instead_of_wrong() -> None:
    query, key, value = (spikes(3, 4, density=0.5, seed=s).requires_grad_() for s in range(3))
    out = stdp_attention(query, key, value, StdpWindow(), implementation="table")
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
