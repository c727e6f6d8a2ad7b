"""STDP attention as one tile a head, alone and with the neuron after it, against the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from s2tdpt.ops import stdp_attention
from s2tdpt.ops.lif import reference as lif_reference
from s2tdpt.ops.norm_lif import NormLif
from s2tdpt.ops.stdp import reference
from s2tdpt.ops.stdp.launch import window_table
from s2tdpt.ops.stdp.tiles import stdp_lif_op

from .attention import WINDOWS, check_attention, make_spikes, make_window, rounding_of
from .cases import (
    DEVICE,
    DTYPES,
    NEURON_GRID,
    NEURONS,
    all_pairs,
    assert_close,
    describe,
    distance_to_threshold,
    fenced,
    neuron_constants,
    noise,
    spikes,
)

INV_TAU = 0.37


@dataclass(kw_only=True)
class Layer:
    """STDP attention and its neuron on random spikes of all heads, qkv [T, B, N, 3·H·D_h]."""

    T: int
    N: int
    D: int
    H: int = 2
    B: int = 2
    dtype: torch.dtype = torch.float32
    window: str = "asymmetric"
    neuron: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    learn_tau: bool = True

    def __post_init__(self) -> None:
        self.neuron = neuron_constants({"v_threshold": 0.5} | self.neuron)
        self.stdp = make_window(self.window, self.H)
        self.qkv, self.scale = self._draw()

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k and v [T, B, H, N, D_h]."""
        return qkv.view(self.T, self.B, self.N, 3, self.H, self.D).permute(3, 0, 1, 4, 2, 5).unbind(0)

    def current(self, qkv: Tensor, scale: float) -> Tensor:
        """What the neuron integrates, [T, B, N, H·D_h], by the reference in qkv's dtype."""
        return reference.attention(*self.heads(qkv), self.stdp, scale).transpose(2, 3).reshape(*qkv.shape[:3], -1)

    def _draw(self) -> tuple[Tensor, float]:
        """Spikes and a scale such that neurons fire, and none so near its threshold that rounding decides."""
        rest, lift = self.neuron["v_reset"] or 0.0, INV_TAU if self.neuron["decay_input"] else 1.0
        for seed in range(50):
            qkv = spikes(self.T, self.B, self.N, 3 * self.H * self.D, density=0.4, seed=seed, dtype=self.dtype)
            current = self.current(qkv.double(), 1.0)
            scale = 1.01 * (self.neuron["v_threshold"] - rest) / lift / float(current[current > 0].median())
            if float(distance_to_threshold(scale * current, INV_TAU, self.neuron).min()) > 1e-5:
                return qkv, scale
        raise AssertionError("every draw has a neuron at its threshold")


def pack(fired: Tensor) -> Tensor:
    """Eight spikes a byte, the first one lowest: [T, bytes]."""
    weights = 2 ** torch.arange(8, device=fired.device)
    return fenced((fired.reshape(len(fired), -1, 8).int() * weights).sum(-1).to(torch.uint8))


def check(layer: Layer) -> None:
    """Spikes, the current and the counts that are kept, and every gradient are those of the reference in float64."""
    qkv = layer.qkv.requires_grad_()
    inv_tau = torch.tensor(INV_TAU, device=DEVICE, requires_grad=layer.learn_tau)
    bits = pack(qkv.detach()) if layer.packed else qkv.new_empty(0, dtype=torch.uint8)
    table = window_table(layer.stdp, layer.H, layer.D, qkv.device)
    spec = NormLif(time_steps=layer.T, training=False, **layer.neuron)
    fired, current, counts = stdp_lif_op(qkv, bits, table, inv_tau, layer.scale, layer.H, *spec.pack())

    wide, wide_tau = (x.detach().double().requires_grad_() for x in (qkv, inv_tau))
    want_current = layer.current(wide, layer.scale)
    integrated = want_current + (current.double() - want_current).detach()  # rounded when it was stored
    rest = torch.full_like(integrated[0], layer.neuron["v_reset"] or 0.0)
    want_fired, _ = lif_reference.lif(integrated, rest, tau=1 / wide_tau, **layer.neuron)
    rounding = rounding_of(layer.dtype)

    assert fired.dtype == current.dtype == layer.dtype
    assert_close(current, want_current, rounding, "current")
    assert torch.equal(fired.double(), want_fired)
    assert 0 < float(want_fired.detach().mean()) < 1, "a case without spikes or without silence shows little"
    query, key, _ = (x.detach().float().sum(-1) for x in layer.heads(qkv))
    assert torch.equal(counts.float(), torch.stack([query, key]))

    grad = noise(*fired.shape, seed=5, dtype=layer.dtype)
    got = torch.autograd.grad(fired, [qkv, inv_tau] if layer.learn_tau else [qkv], grad)
    want = torch.autograd.grad(want_fired, [wide, wide_tau], grad.double())
    for name, g, w in zip("qkv", layer.heads(got[0]), layer.heads(want[0]), strict=True):
        assert_close(g, w, rounding, f"gradient of {name}")
    if layer.learn_tau:
        assert_close(got[1], want[1], 1e-4, "gradient of 1/tau")  # a sum in which much cancels


def sensible(N: int, D: int, H: int, packed: bool, **_: Any) -> bool:
    return (N <= 7 or D <= 32) and not (packed and N * H * D * 3 % 8)


CELLS = all_pairs(
    sensible, T=(1, 2, 4), N=(1, 7, 64, 100), D=(8, 20, 32, 96), H=(1, 2, 3), dtype=DTYPES, window=WINDOWS,
    neuron=tuple(NEURONS), packed=(False, True), learn_tau=(True, False),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_pairs_with_the_neuron(cell: dict[str, Any]) -> None:
    check(Layer(**cell | {"neuron": NEURONS[cell["neuron"]], "B": 1 if cell["N"] > 7 else 2}))


@pytest.mark.parametrize("T", [1, 2, 4])
@pytest.mark.parametrize("neuron", NEURON_GRID, ids=describe)
def test_every_neuron(neuron: dict[str, Any], T: int) -> None:
    check(Layer(T=T, N=5, D=8, neuron=neuron))


def test_the_neurons_take_several_programs() -> None:
    """Neurons fill blocks of 1024; the last is not full."""
    check(Layer(T=2, N=65, D=20, H=1, B=2))


ATTENTION_CELLS = all_pairs(
    lambda N, D, **_: N <= 7 or D <= 32,
    N=(1, 7, 64, 100), D=(8, 20, 32, 96), lead=((), (2,), (3, 2), (2, 1, 3)), dtype=DTYPES, window=WINDOWS,
)  # fmt: skip


@pytest.mark.parametrize("cell", ATTENTION_CELLS, ids=describe)
def test_pairs_without_the_neuron(cell: dict[str, Any]) -> None:
    lead, N, D = cell["lead"], cell["N"], cell["D"]
    name = cell["window"] if lead else "asymmetric"
    check_attention(make_spikes(*lead, N, D, keys=N, dtype=cell["dtype"]), make_window(name, lead[-1] if lead else 1))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 0, 2)])
def test_spikes_in_any_memory_order(order: tuple[int, ...]) -> None:
    query, key, value = make_spikes(2, 3, 9, 8, keys=9)
    back = sorted(range(4), key=order.__getitem__)
    turned = query.permute(order).contiguous().permute(back)
    check_attention((turned, key, value), make_window("per head", 3))


def test_gradients_in_any_memory_order() -> None:
    inputs = [x.requires_grad_() for x in make_spikes(2, 3, 9, 8, keys=9)]
    out = stdp_attention(*inputs, make_window("per head", 3), implementation="triton")
    grad = noise(*out.shape, seed=1)
    for a, b in ((grad, grad.transpose(0, 3).contiguous().transpose(0, 3)), (torch.ones_like(grad), None)):
        turned = torch.ones((), device=grad.device).expand_as(grad) if b is None else b
        dense, strided = (torch.autograd.grad(out, inputs, g, retain_graph=True) for g in (a, turned))
        for x, y in zip(dense, strided, strict=True):
            assert torch.equal(x, y)
