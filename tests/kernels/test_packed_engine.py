"""Inference on packed spikes, whole, against the plain model and the engine for CPUs; refusals and falling back."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from s2tdpt.errors import InputError, ModelError
from s2tdpt.inference import CompiledModel, compile_for_inference, compiled, gpu
from s2tdpt.inference.engine import Engine
from s2tdpt.inference.packed import PackedEngine
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.ops.packed import triton as ops
from s2tdpt.ops.stdp import StdpWindow

from ..inference.cases import in_eight_bits, small
from ..models.cases import images
from .cases import DEVICE

MODELS: dict[str, dict[str, Any]] = {
    "stdp": {},
    "random": {"attention": "random"},
    "plif": {"neuron": "plif", "tau": 3.0},
    "soft reset": {"v_reset": None},
    "rest below zero, eight steps": {"v_reset": -0.2, "time_steps": 8},
    "one step": {"time_steps": 1},
    "one convolution": {"stem_channels": (), "stem_pool": (False,)},
    "window per head": {"window": StdpWindow(a_plus=(0.3, 0.2, 0.4), tau_plus=(9.0, 8.0, 20.0))},
}


def made(**options: Any) -> SpikingTransformer:
    return cast(SpikingTransformer, in_eight_bits(small(**options)).float())


def pictures(n: int = 3, *size: int) -> Tensor:
    return images(n, 3, *(size or (4, 8))).float().to(DEVICE)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_and_of_the_engine_for_cpus(name: str) -> None:
    model = made(**MODELS[name])
    engine = PackedEngine(copy.deepcopy(model).to(DEVICE), membrane=torch.float32)
    on_cpu, truth = Engine(model, "int8"), copy.deepcopy(model).double()
    wrong = []
    for x in (images(4, 3, 4, 8), images(2, 2, 3, 4, 4)):
        found = engine(x.float().to(DEVICE), model.time_steps).cpu()
        want = truth(x)
        assert want.shape[0] == 1 or (want[0] - want[1]).abs().max() > 1e-3  # pictures make a difference
        for other in (want, on_cpu(x.float(), model.time_steps)):
            wrong.append((found - other).abs().amax(1) > 1e-4)
    assert torch.cat(wrong).double().mean() <= 0.15  # a membrane at its threshold may round to the other side


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_membranes_in_half_precision(dtype: torch.dtype) -> None:
    model = made().to(DEVICE)
    x = pictures()
    exact, half = (PackedEngine(model, membrane=stored)(x, 3) for stored in (torch.float32, dtype))
    assert (exact - half).abs().max() < 0.3 * exact.std()
    assert not torch.equal(exact, half)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter passes for a GPU, on which 8-bit products are right."""
    if DEVICE == "cpu":
        monkeypatch.setattr(compiled, "_device", lambda model: torch.device("cuda"))
        monkeypatch.setattr(gpu, "obstacle", lambda model: gpu.structure(model) or gpu.unfit(model))
        monkeypatch.setitem(compiled._TIMED_IMAGES, "cuda", 2)
        monkeypatch.setattr(compiled, "_example", lambda model, place: pictures(2))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


def compile_asked(model: nn.Module, **options: Any) -> CompiledModel:
    return compile_for_inference(model.to(DEVICE), **options)


@torch.no_grad()
def test_it_is_chosen_where_it_is_faster(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    monkeypatch.setattr(compiled, "_race", lambda runs, place: {name: float(name == "plain") for name in runs})
    run = compile_asked(model)
    assert run.precision == "int8"
    assert isinstance(run.engine, PackedEngine)
    x = pictures()
    assert torch.equal(run(x), run(x))
    run.time_steps = 1
    assert torch.equal(run(x), PackedEngine(model)(x, 1))
    seen: list[Tensor] = []
    attention: Any = model.blocks[0].attn
    attention.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(run(x), model(x))
    assert len(seen) == 2
    monkeypatch.setattr(compiled, "_race", lambda runs, place: {name: float(name != "plain") for name in runs})
    assert compile_asked(made()).precision == "plain"


def test_the_race_is_run(on_gpu: None) -> None:
    assert set(compile_asked(made()).seconds) == {"plain", "int8"}


@torch.no_grad()
def test_what_a_byte_or_a_tile_does_not_hold(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_race", lambda runs, place: {name: float(name == "plain") for name in runs})
    model = made()
    asked, auto = compile_asked(model, precision="int8"), compile_asked(model)
    for x, steps, reason in (
        (pictures(), 9, "a byte holds 8 time steps, not 9"),
        (images(9, 1, 3, 4, 4).float().to(DEVICE), 1, "a byte holds 8 time steps, not 9"),
        (pictures(1, 2, 260), 1, "a head of 130 tokens does not fit into one tile of 128"),
    ):
        model.time_steps = steps
        with pytest.raises(ModelError, match=f"inference in int8 is not available: {reason}"):
            asked(x)
        assert torch.equal(auto(x), model(x))
        if steps > 8:
            with pytest.raises(ModelError, match=reason):
                compile_asked(model, precision="int8")
            assert compile_asked(model).precision == "plain"
    assert compile_asked(model, example=pictures(1, 2, 260)).precision == "plain"  # nothing of it would be int8


def test_models_it_does_not_know_stay_plain_or_are_refused(on_gpu: None) -> None:
    for other, reason in (
        (small(attention="mean").float(), "MeanAttention has no kernel for packed spikes"),
        (small(embed_dim=132, num_heads=1).float(), "a head has 132 features, more than 128"),
    ):
        with pytest.raises(ModelError, match=f"inference in int8 is not available: {reason}"):
            compile_asked(other, precision="int8")
        assert compile_asked(other).precision == "plain"
    for precision in ("float32", "int16"):
        with pytest.raises(ModelError, match=f"inference in {precision} is not available: on a GPU"):
            compile_asked(made(), precision=precision)


def test_images_elsewhere() -> None:
    engine = PackedEngine(made().to(DEVICE))
    with pytest.raises(InputError, match="the images are on meta"):
        engine(torch.empty(1, 3, 8, 8, device="meta"), 1)


def test_obstacles_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.obstacle(made()) == "the model is not on one GPU"
    assert not gpu.wrong_products(torch.device(DEVICE))
    look = gpu.hardware.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert look(torch.device("cuda")) == "this GPU has no 8-bit products that Triton knows"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    right = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *given: right(*given) ^ 1)
    assert gpu.wrong_products(torch.device(DEVICE))
    monkeypatch.setattr(gpu, "wrong_products", lambda device: True)
    assert look(torch.device("cuda")) == "this Triton's kernels on packed spikes are wrong"

    def absent(device: torch.device) -> bool:
        raise RuntimeError("no such operator\nat all")

    monkeypatch.setattr(gpu, "wrong_products", absent)
    assert look(torch.device("cuda")) == "this Triton's 8-bit products do not run: no such operator"


def test_attention_is_looked_at_with_unlike_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gpu.wrong_attention(torch.device(DEVICE))
    right = ops.stdp

    def of_the_first_head(qkv: torch.Tensor, window: torch.Tensor, *given: Any) -> torch.Tensor:
        return right(qkv, window[:1].expand_as(window).contiguous(), *given)

    monkeypatch.setattr(ops, "stdp", of_the_first_head)
    assert gpu.wrong_attention(torch.device(DEVICE))


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu() -> None:
    model = made(embed_dim=64, num_heads=2).cuda()
    run = compile_for_inference(model, precision="int8")
    x = pictures(8)
    assert (run(x) - model(x)).abs().max() < 0.3 * model(x).std()
    assert torch.equal(run(x), run(x.clone()))  # recorded once, replayed
    assert compile_for_inference(model).precision in ("int8", "plain")
