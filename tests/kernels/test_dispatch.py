"""Which implementation runs: what cannot be had is refused where it was asked for, and said once where it was not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from s2tdpt import energy, explain
from s2tdpt.attention import STDPAttention
from s2tdpt.errors import InputError, ModelError
from s2tdpt.models import dispatch, fused
from s2tdpt.models.dispatch import use_fused
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.neurons import LIF
from s2tdpt.ops import StdpWindow, availability, observe, stdp_attention
from s2tdpt.training.evaluate import firing_rates
from s2tdpt.training.spike_cost import spiking_macs

from .attention import make_spikes
from .cases import DEVICE, noise
from .models import tiny

IMAGES = (2, 3, 4, 8)


class MyNeuron(LIF):
    """A neuron that no kernel knows."""


def silence(model: SpikingTransformer) -> None:
    model.blocks[0].neuron = MyNeuron()  # type: ignore[assignment]


def forget(model: SpikingTransformer) -> None:
    norm: Any = model.stem.norm[0]
    norm.running_mean = norm.running_var = None


def parametrize(model: SpikingTransformer) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.fc1)  # type: ignore[union-attr]


def nothing(model: SpikingTransformer) -> None:
    pass


OBSTACLES: dict[str, tuple[dict[str, Any], Callable[[SpikingTransformer], None], tuple[int, ...], str]] = {
    "another attention": ({"attention": "mean"}, nothing, IMAGES, "'mean' has no fused kernel"),
    "too many tokens": ({"embed_dim": 8, "num_heads": 1}, nothing, (1, 3, 24, 24), "144 tokens"),
    "a large tile in float32": ({"embed_dim": 64, "num_heads": 1}, nothing, (1, 3, 20, 20), "float32 does not fit"),
    "too many features": ({"embed_dim": 160, "num_heads": 1}, nothing, (1, 3, 4, 4), "160 features"),
    "another neuron": ({}, silence, IMAGES, "blocks.0.neuron is a MyNeuron"),
    "another layer": ({}, parametrize, IMAGES, "blocks.0.mlp.fc1 is a Parametrized"),
    "no running statistics": ({}, forget, IMAGES, "stem.norm.0 has no running statistics"),
}


@pytest.mark.parametrize(("options", "change", "size", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_the_kernels_cannot_do(
    options: dict[str, Any], change: Callable[[SpikingTransformer], None], size: tuple[int, ...], reason: str
) -> None:
    model, x = tiny(**options), noise(*size, seed=0)
    change(model)
    model.implementation = "fused"
    with pytest.raises(ModelError, match=reason):
        model(x)
    model.implementation = "plain"
    assert not use_fused(model, x)


def test_float64_is_refused() -> None:
    model = tiny().double()
    model.implementation = "fused"
    with pytest.raises(ModelError, match="float64"):
        model(noise(*IMAGES, seed=0).double())


def test_half_precision_fits_a_larger_tile() -> None:
    model, x = tiny(embed_dim=64, num_heads=1), noise(1, 3, 20, 20, seed=0)
    model.implementation = "fused"
    with torch.autocast(x.device.type, torch.bfloat16):
        assert use_fused(model, x)
    assert use_fused(model, x.bfloat16())


def test_neither_gpu_nor_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny().cpu(), torch.zeros(IMAGES)
    model.implementation = "fused"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ModelError, match="needs a CUDA device"):
        model(x)


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    model.implementation = "fused"
    monkeypatch.setattr(availability, "HAS_TRITON", False)
    with pytest.raises(ModelError, match="Triton is not installed"):
        model(noise(*IMAGES, seed=0))


def test_unknown_name() -> None:
    model = tiny()
    model.implementation = "fussed"
    with pytest.raises(ModelError, match="'fussed' is unknown"):
        model(noise(*IMAGES, seed=0))


@pytest.mark.parametrize("size", [(3,), (3, 4, 8), (2, 4, 4, 8), (2, 3, 5, 8), (2, 3, 0, 8)])
def test_images_of_a_wrong_shape(size: tuple[int, ...]) -> None:
    model = tiny()
    model.implementation = "fused"
    with pytest.raises(InputError):
        model(torch.zeros(size, device=DEVICE))


def on_gpu(*size: int) -> Tensor:
    """Images on a CUDA device, of which nothing but the shape is there."""
    with FakeTensorMode():
        return torch.zeros(size, device="cuda")


@pytest.fixture
def automatic() -> SpikingTransformer:
    model = tiny()
    model.implementation = "auto"
    dispatch._say_once.cache_clear()
    return model


def test_auto_on_the_cpu_is_plain(automatic: SpikingTransformer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_fused(automatic, torch.zeros(IMAGES))


def test_auto_on_a_gpu_is_fused(automatic: SpikingTransformer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_fused(automatic, on_gpu(*IMAGES))


def test_auto_says_once_why_it_is_plain(automatic: SpikingTransformer) -> None:
    silence(automatic)
    with pytest.warns(UserWarning, match="plain implementation: blocks.0.neuron is a MyNeuron"):
        assert not use_fused(automatic, on_gpu(*IMAGES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use_fused(automatic, on_gpu(*IMAGES))


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "global": lambda _: nn.modules.module.register_module_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_auto_is_plain_while_a_hook_watches(
    automatic: SpikingTransformer, register: Callable[[nn.Module], Any]
) -> None:
    attention = automatic.blocks[0].attn
    assert isinstance(attention, STDPAttention)
    handle = register(attention.mix_neuron)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that is what was asked for: nothing to say
        try:
            assert not use_fused(automatic, on_gpu(*IMAGES))
        finally:
            handle.remove()
        assert use_fused(automatic, on_gpu(*IMAGES))


def test_auto_is_plain_while_somebody_listens(automatic: SpikingTransformer) -> None:
    with observe.observe(lambda name, info: None):
        assert not use_fused(automatic, on_gpu(*IMAGES))
    assert use_fused(automatic, on_gpu(*IMAGES))


WATCHERS: dict[str, Callable[[SpikingTransformer, Tensor], Any]] = {
    "firing rates": firing_rates,
    "spiking layers": lambda model, x: sorted(spiking_macs(model, x).values()),
    "energy": lambda model, x: energy.count(model, x).to_dict(),
    "firing maps": lambda model, x: explain.firing_rates(model, x).layers,
    "spike trains": lambda model, x: [float(spikes.sum()) for spikes in explain.spike_trains(model, x).values()],
    "attention": lambda model, x: len(explain.record_attention(model, x)),
}


@pytest.mark.parametrize("watch", WATCHERS.values(), ids=WATCHERS)
def test_what_hooks_measure_does_not_depend_on_the_implementation(
    watch: Callable[[SpikingTransformer, Tensor], Any],
) -> None:
    model, x = tiny(), noise(1, 3, 4, 8, seed=0)
    expected = watch(model, x)
    model.implementation = "fused"
    assert watch(model, x) == expected
    assert model.implementation == "fused"


def test_fused_runs_the_fused_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(fused, "forward_features", lambda model, x: seen.append(x) or torch.zeros(1, 2, 3, 16))
    model, x = tiny().cpu(), noise(*IMAGES, seed=0)
    model.implementation = "fused"
    model(x)
    assert len(seen) == 1


ATTENTION_OBSTACLES: dict[str, tuple[tuple[Tensor, Tensor, Tensor], str]] = {
    "float64": (make_spikes(5, 8, keys=5, dtype=torch.float64), "float64"),
    "too many features": (make_spikes(5, 136, keys=5), "136"),
    "other features of V": ((*make_spikes(5, 8, keys=5)[:2], make_spikes(5, 4, keys=5)[2]), "as many of V as of Q"),
}


@pytest.mark.parametrize(("inputs", "reason"), ATTENTION_OBSTACLES.values(), ids=ATTENTION_OBSTACLES)
def test_attention_that_the_kernels_cannot_do(inputs: tuple[Tensor, Tensor, Tensor], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        stdp_attention(*inputs, StdpWindow(), implementation="triton")
    assert stdp_attention(*inputs, StdpWindow()).shape == inputs[2].shape  # "auto" takes another


def test_attention_without_gpu_or_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.cpu() for x in make_spikes(5, 8, keys=5)]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        stdp_attention(*inputs, StdpWindow(), implementation="triton")
    monkeypatch.setattr(availability, "HAS_TRITON", False)
    with pytest.raises(InputError, match="Triton is not installed"):
        stdp_attention(*inputs, StdpWindow(), implementation="triton")
