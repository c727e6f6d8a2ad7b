"""The engine's parts against the modules that they stand for: folding, products, membranes, mixing, pooling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2tdpt.attention import IdentityAttention, MeanAttention, RandomAttention, SpikingSelfAttention, STDPAttention
from s2tdpt.inference import membrane
from s2tdpt.inference.engine import _pool
from s2tdpt.inference.fold import fold
from s2tdpt.inference.membrane import Membrane
from s2tdpt.inference.mixing import mixing
from s2tdpt.inference.synapses import FloatSynapse, IntegerSynapse, Synapse
from s2tdpt.neurons import LIF, PLIF
from s2tdpt.normalisation import BatchNorm
from s2tdpt.ops.stdp import StdpWindow

NEURONS: dict[str, Callable[[], LIF]] = {
    "hard": LIF,
    "soft": lambda: LIF(2.5, v_reset=None, v_threshold=0.7),
    "rest": lambda: LIF(3.0, v_reset=-0.3),
    "undecayed": lambda: LIF(1.5, decay_input=False, v_reset=0.2),
    "undecayed soft": lambda: LIF(1.5, decay_input=False, v_reset=None),
    "tau 1": lambda: LIF(1.0),
    "learnt": lambda: PLIF(4.0),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spikes(*shape: int, seed: int = 0, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).double()


def levels(*shape: int, seed: int = 0) -> Tensor:
    """Weights that one 8-bit plane holds, with another scale for each row."""
    whole = (drawn(*shape, seed=seed) * 40).round().clamp(-127, 127)
    whole.view(shape[0], -1)[:, 0] = 127
    return whole * torch.linspace(0.5, 2, shape[0]).double().view(-1, *(1,) * (len(shape) - 1)).exp2().round() / 256


@pytest.mark.parametrize("bias", [True, False])
def test_folded_layers_are_the_layer_and_its_norm(bias: bool) -> None:
    linear, conv = nn.Linear(6, 4, bias=bias).double(), nn.Conv2d(6, 4, 3, padding=1, bias=bias).double()
    for layer, norm, x in (
        (linear, BatchNorm(4), drawn(2, 5, 6)),
        (conv, nn.BatchNorm2d(4), drawn(2, 6, 5, 5)),
    ):
        norm = norm.double()
        for seed, tensor in enumerate((norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var)):
            assert tensor is not None
            tensor.copy_(drawn(4, seed=seed))
        assert norm.running_var is not None
        norm.running_var.abs_()
        norm.eval()
        weight, shift = fold(layer.weight, layer.bias, norm)
        found = F.linear(x, weight, shift) if x.ndim == 3 else F.conv2d(x, weight, shift, padding=1)
        torch.testing.assert_close(found, norm(layer(x)), rtol=0, atol=1e-12)


def synapses(weight: Tensor, bias: Tensor) -> dict[str, tuple[Synapse, torch.dtype, float]]:
    """Each with the type of its spikes and what it may differ by."""
    return {
        "float64": (FloatSynapse(weight, bias, torch.float64), torch.float64, 1e-12),
        "float32": (FloatSynapse(weight, bias, torch.float32), torch.float32, 1e-5),
        "int8": (IntegerSynapse(weight, bias, 1), torch.uint8, 1e-5),
        "int16": (IntegerSynapse(weight, bias, 2), torch.uint8, 1e-5),
    }


@pytest.mark.parametrize("precision", ["float64", "float32", "int8", "int16"])
@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["linear", "convolution"])
@pytest.mark.parametrize("width", [8, 13], ids=["even", "odd"])
def test_products(kernel: tuple[int, ...], width: int, precision: str) -> None:
    weight, bias = levels(7, width, *kernel), drawn(7)
    synapse, dtype, tolerance = synapses(weight, bias)[precision]
    for batch in (2, 5):  # another batch wants another layout
        x = spikes(batch, 4, 6, width) if kernel else spikes(batch, width)
        truth = FloatSynapse(weight, bias, torch.float64)(x)
        u = drawn(*truth.shape).to(torch.float64 if precision == "float64" else torch.float32)
        for found, expected in (
            (synapse(x.to(dtype)), truth),
            (synapse.add_to(u.clone(), x.to(dtype)), truth + u),
            (synapse.charge(x.to(dtype), None, 0.5, 1.0), truth),
        ):
            assert found.is_contiguous()
            torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance)


def test_two_planes_hold_sixteen_bits_and_one_plane_eight() -> None:
    weight, bias, x = drawn(16, 64), drawn(16), spikes(50, 64)
    truth = x @ weight.T + bias
    errors = [float((IntegerSynapse(weight, bias, n)(x.to(torch.uint8)) - truth).std() / truth.std()) for n in (1, 2)]
    assert 1e-3 < errors[0] < 2e-2
    assert 2e-6 < errors[1] < 2e-4
    assert len(IntegerSynapse(levels(16, 64), bias, 2).levels) == 1  # nothing is left for a second plane


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_membranes_fire_as_the_neuron_does(neuron, T: int, monkeypatch) -> None:
    monkeypatch.setattr(membrane, "_CHUNK", 7)
    lif = neuron().double()
    current = 4 * drawn(T, 5, 6)
    truth = lif(current)
    layer = Membrane.of(lif)
    for dtype in (torch.float64, torch.uint8):
        kept = -current
        assert torch.equal(torch.stack(layer.fire(kept.unbind(0), dtype, keep=True)).double(), truth)
        assert torch.equal(kept, -current)
        assert torch.equal(torch.stack(layer.fire(kept.unbind(0), dtype, keep=False)).double(), truth)
    assert 0.1 < truth.mean() < 0.9


@pytest.mark.parametrize("precision", ["float64", "int8"])
@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_membranes_charged_by_the_product(neuron, precision: str) -> None:
    lif = neuron().double()
    weight, bias = 3 * levels(12, 16), drawn(12)
    synapse, dtype, _ = synapses(-weight, -bias)[precision]
    arriving = spikes(4, 30, 16)
    truth = lif(arriving @ weight.T + bias)
    found = Membrane.of(lif).fire_through(synapse, arriving.to(dtype).unbind(0), dtype)
    assert (torch.stack(found).double() != truth).double().mean() < 1e-3  # 32 bits may round a tie the other way
    assert 0.1 < truth.mean() < 0.9


def test_many_steps_stay_within_floating_point() -> None:
    lif, weight, bias = LIF(1.2), levels(12, 16), drawn(12)
    arriving = spikes(200, 3, 16)
    truth = lif(arriving @ weight.T + bias)
    found = Membrane.of(lif).fire_through(
        IntegerSynapse(-weight, -bias, 1), arriving.to(torch.uint8).unbind(0), torch.uint8
    )
    assert (torch.stack(found).double() != truth).double().mean() < 1e-3


WINDOW = StdpWindow(a_plus=(0.3, 0.2, 0.4), a_minus=0.25, tau_minus=(9.0, 8.0, 20.0), offset=0.45)
ATTENTIONS: dict[str, Callable[[], SpikingSelfAttention]] = {
    "stdp": lambda: STDPAttention(24, 3),
    "stdp per head": lambda: STDPAttention(24, 3, window=WINDOW, gain=5.0),
    "random": lambda: RandomAttention(24, 3),
    "mean": lambda: MeanAttention(24, 3, offset=0.4),
    "identity": lambda: IdentityAttention(24, 3),
}


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_mixing(attention) -> None:
    layer, B, N = attention().double(), 2, 5
    parts = spikes(B * N, len(layer.parts), 3, 8)
    heads = parts.view(1, B, N, -1, 3, 8).permute(3, 0, 1, 4, 2, 5)
    truth = -layer.mix(*heads.unbind(0)).transpose(2, 3).reshape(B * N, 24)
    exact = mixing(layer, torch.float64, integer=False)(parts.flatten(1), N)
    torch.testing.assert_close(exact, truth, rtol=0, atol=1e-12)
    quick = mixing(layer, torch.float32, integer=True)(parts.flatten(1).to(torch.uint8), N)
    torch.testing.assert_close(quick.double(), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
def test_the_weight_that_is_folded_is_the_one_that_projects(attention) -> None:
    layer, x = attention().double(), spikes(2, 1, 5, 24)
    torch.testing.assert_close(F.linear(x, layer.qkv_weight), layer.project(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(2, 2), (6, 8)])
def test_pooling(size: tuple[int, int], dtype: torch.dtype) -> None:
    x = spikes(3, *size, 4, rate=0.1)
    truth = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    assert torch.equal(_pool(x.to(dtype)).double(), truth)
    assert 0 < truth.mean() < 1
