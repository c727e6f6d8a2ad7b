"""STDP attention maps against eqs 17-22 written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from s2tdpt.errors import InputError
from s2tdpt.explain import attention_rollout, record_attention, window_curve
from s2tdpt.ops.stdp import StdpWindow, stdp_attention


def weight(fired_q: float, fired_k: float, dim: int, window: StdpWindow) -> float:
    """Eqs 18-22 for one pair of spike counts, with plain numbers."""
    delta = window.t_max * (1 - fired_q / dim) - window.t_max * (1 - fired_k / dim)
    if delta < 0:
        return window.offset + window.a_plus * math.exp(-abs(delta) / window.tau_plus)
    return window.offset - window.a_minus * math.exp(-abs(delta) / window.tau_minus)


def test_maps_are_the_dense_equation(spiking, images) -> None:
    records = record_attention(spiking, images())
    assert len(records) == 2
    for record in records:
        weights = record.weights()
        assert weights.shape == (3, 4, 3, 24, 24)
        counts_q, counts_k = record.query.sum(-1), record.key.sum(-1)
        assert counts_q.unique().numel() > 2
        for t, b, h, i, j in [(0, 0, 0, 0, 0), (2, 3, 2, 23, 5), (1, 2, 0, 7, 7), (2, 0, 1, 3, 19), (1, 1, 1, 11, 4)]:
            pair = counts_q[t, b, h, i].item(), counts_k[t, b, h, j].item()
            assert weights[t, b, h, i, j].item() == pytest.approx(weight(*pair, 8, record.window), abs=1e-12)
        mixed = record.scale * weights @ record.value
        out = stdp_attention(record.query, record.key, record.value, record.window, scale=record.scale)
        torch.testing.assert_close(mixed, out, rtol=1e-12, atol=1e-12)


def test_views_of_the_maps(spiking, images) -> None:
    record, last = record_attention(spiking, images())
    weights = record.weights()
    received = record.received()
    assert received.shape == (4, 3, 4, 6)
    torch.testing.assert_close(received, weights.mean(0).mean(-2).view(4, 3, 4, 6))
    torch.testing.assert_close(record.from_token(7), weights[..., 7, :].mean(0).view(4, 3, 4, 6))
    routes = []
    for each in (record, last):
        mean = each.weights().mean((0, 2))
        routes.append((mean / mean.sum(-1, keepdim=True) + torch.eye(24)) / 2)
    rollout = attention_rollout([record, last], 7)
    torch.testing.assert_close(rollout, (routes[1] @ routes[0])[:, 7].view(4, 4, 6))
    torch.testing.assert_close(rollout.sum((1, 2)), torch.ones(4, dtype=torch.float64))
    for view in (record.from_token, lambda token: attention_rollout([record], token)):
        with pytest.raises(InputError, match=r"token 24 is outside 0\.\.23"):
            view(24)
    with pytest.raises(InputError, match="no STDP attention"):
        attention_rollout([], 0)


@pytest.mark.parametrize("family", ["ann", "mean", "identity"])
def test_models_without_stdp_attention(build_model, images, family) -> None:
    model = build_model("ann") if family == "ann" else build_model(attention=family)
    assert record_attention(model, images()) == []


def test_window_curve() -> None:
    window = StdpWindow(a_plus=0.3, a_minus=0.2, tau_plus=15.0, tau_minus=25.0)
    m, curve = window_curve(window, 6)
    assert m.tolist() == list(range(-6, 7))
    expected = [[weight(max(k, 0), max(-k, 0), 6, window) for k in range(-6, 7)]]
    torch.testing.assert_close(curve, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert m[curve.argmin()] == 0
    assert m[curve.argmax()] == 1


def test_window_curve_of_each_head() -> None:
    _, curve = window_curve(StdpWindow(a_plus=(0.1, 0.4)), 3)
    assert curve.shape == (2, 7)
    torch.testing.assert_close(curve[0], window_curve(StdpWindow(a_plus=0.1), 3)[1][0])
    torch.testing.assert_close(curve[1], window_curve(StdpWindow(a_plus=0.4), 3)[1][0])
