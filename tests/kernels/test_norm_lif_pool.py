"""The kernels of norm and neuron with max-pooling against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from s2tdpt.ops.norm_lif import NormLif
from s2tdpt.ops.norm_lif.triton import norm_lif

from .cases import DTYPES, NEURONS, all_pairs, describe, fenced, neuron_constants, noise
from .norm import Inputs, check, make_inputs

GRIDS = ((1, 6, 8), (2, 5, 3), (1, 7, 1), (1, 1, 6), (3, 2, 2), (2, 5, 4))  # batch, height, width


def sensible(T: int, shared: bool, **_: Any) -> bool:
    return T > 1 or not shared


CELLS = all_pairs(
    sensible, T=(1, 2, 4), grid=GRIDS, channels=(8, 20, 48), dtype=DTYPES, training=(True, False),
    shared=(False, True), neuron=tuple(NEURONS), learn_tau=(True, False), largest=(False, True),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_pairs(cell: dict[str, Any]) -> None:
    batch, height, width = cell["grid"]
    spec = NormLif(
        time_steps=cell["T"], training=cell["training"], pool=(height, width), bits=cell["channels"] % 8 == 0,
        largest=cell["largest"], **neuron_constants(NEURONS[cell["neuron"]]),
    )  # fmt: skip
    rows = batch * height * width
    inputs = make_inputs(spec, rows, cell["channels"], dtype=cell["dtype"], shared=cell["shared"])
    check(spec, inputs, learn_tau=cell["learn_tau"])


def test_the_first_of_equal_spikes_gets_the_gradient() -> None:
    """In a grid where all neurons fire alike, each window's gradient goes to its first place in reading order."""
    ones, zeros = torch.ones(8), torch.zeros(8)
    y = fenced(torch.full((1, 25, 8), 5.0)).requires_grad_()
    inputs = Inputs(y, *(fenced(x) for x in (ones, zeros, zeros, ones)), fenced(torch.tensor(0.5)), None)
    spec = NormLif(time_steps=1, training=False, pool=(5, 5))
    pooled, *_ = norm_lif(*inputs.as_arguments(), spec)
    (grad,) = torch.autograd.grad(pooled, y, torch.ones_like(pooled))
    windows = (grad[0, :, 0] / grad[0, 0, 0]).view(5, 5).cpu()
    first = torch.zeros(5, 5)
    first[[0, 0, 0, 1, 1, 1, 3, 3, 3], [0, 1, 3] * 3] = 1
    assert torch.equal(windows, first)


@pytest.mark.parametrize("T", [1, 3])
def test_windows_that_overlap_add_up(T: int) -> None:
    """One neuron that fires alone is picked by all four windows it is in."""
    y = fenced(torch.zeros(T, 9, 8))
    y[:, 3 * 1 + 1] = 5.0
    ones, zeros = fenced(torch.ones(8)), fenced(torch.zeros(8))
    spec = NormLif(time_steps=T, training=False, pool=(3, 3))
    inputs = Inputs(y.requires_grad_(), ones, zeros, zeros, ones, fenced(torch.tensor(0.5)), None)
    pooled, *_ = norm_lif(*inputs.as_arguments(), spec)
    assert torch.equal(pooled, torch.ones_like(pooled))
    gradients = [noise(*pooled.shape, seed=s) for s in (1, 2)]
    merged = [g.sum(1, keepdim=True).expand_as(g) / 4 for g in gradients]
    for g, m in zip(gradients, merged, strict=True):
        (a,) = torch.autograd.grad(pooled, y, g, retain_graph=True)
        (b,) = torch.autograd.grad(pooled, y, m.contiguous(), retain_graph=True)
        torch.testing.assert_close(a, b)
        assert float(a[:, 3 * 1 + 1].abs().min()) > 0


@pytest.mark.parametrize("loud", [1.0, 5.0])
def test_the_largest_charge_gets_the_gradient(loud: float) -> None:
    """Of nine neurons, silent or firing, each window's gradient goes to the one that is charged the most."""
    y = fenced(torch.arange(25.0).view(1, 25, 1).expand(1, 25, 8) / 25 * loud).requires_grad_()
    ones, zeros = fenced(torch.ones(8)), fenced(torch.zeros(8))
    inputs = Inputs(y, ones, zeros, zeros, ones, fenced(torch.tensor(0.5)), None)
    spec = NormLif(time_steps=1, training=False, pool=(5, 5), largest=True)
    pooled, *_ = norm_lif(*inputs.as_arguments(), spec)
    (grad,) = torch.autograd.grad(pooled, y, torch.ones_like(pooled))
    last = torch.zeros(5, 5, dtype=torch.bool)
    last[[1, 1, 1, 3, 3, 3, 4, 4, 4], [1, 3, 4] * 3] = True
    assert torch.equal((grad[0, :, 0] > 0).view(5, 5).cpu(), last)
    assert bool(pooled.any()) is (loud > 2)
