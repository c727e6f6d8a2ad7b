"""The compiled model's logits are the model's: in float64 to rounding, in 8 bits where 8 bits hold the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from s2tdpt import data
from s2tdpt.inference import agreement, compile_for_inference, engine
from s2tdpt.models import list_models, load_model
from s2tdpt.ops.stdp import StdpWindow

from ..models.cases import HIERARCHY, images
from .cases import in_eight_bits, small

MODELS: dict[str, dict[str, Any]] = {
    "stdp": {},
    "mean": {"attention": "mean", "gain": 7.3},  # with 8, six spikes of 24 reach the threshold exactly
    "identity": {"attention": "identity"},
    "random": {"attention": "random"},
    "plif": {"neuron": "plif", "tau": 3.0},
    "soft reset": {"v_reset": None},
    "rest below zero": {"v_reset": -0.2},
    "tau 1": {"tau": 1.0},
    "one step": {"time_steps": 1},
    "one convolution": {"stem_channels": (), "stem_pool": (False,)},
    "stages": HIERARCHY,
    "stages, full mixers": HIERARCHY | {"mixer": "conv", "stage_mixers": ("conv", "none"), "stage_depths": (1, 0)},
    "stages at once": HIERARCHY | {"stem_channels": (), "stem_pool": (False,), "v_reset": None},
    "a mixer without stages": {"mixer": "dwconv"},
    "window per head": {"window": StdpWindow(a_plus=(0.3, 0.2, 0.4), tau_plus=(9.0, 8.0, 20.0))},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small(**MODELS[request.param])


@torch.no_grad()
def test_float64_is_equal_to_rounding(model: nn.Module) -> None:
    compiled = compile_for_inference(model, precision="float32")  # as the weights: float64
    for x in (images(5, 3, 8, 12), images(2, 4, 3, 8, 8), images(1, 3, 4, 4)):
        truth = model(x)
        torch.testing.assert_close(compiled(x), truth, rtol=0, atol=1e-10)
        assert truth.shape[0] == 1 or (truth[0] - truth[1]).abs().max() > 1e-3  # pictures make a difference


@torch.no_grad()
@pytest.mark.parametrize("precision", ["int8", "int16"])
def test_integers_are_equal_where_eight_bits_hold_the_weights(model: nn.Module, precision: str, integers) -> None:
    model = in_eight_bits(model)
    compiled = compile_for_inference(model.float(), precision=precision)
    model = model.double()
    wrong = [
        (compiled(x.float()) - model(x)).abs().amax(1) > 1e-4 for x in (images(9, 3, 8, 12), images(2, 4, 3, 8, 8))
    ]
    assert torch.cat(wrong).double().mean() <= 0.1  # a membrane at its threshold may round to the other side


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, HIERARCHY], ids=["plain", "stages"])
def test_all_images_at_once_or_in_parts(options: dict[str, Any], monkeypatch, integers) -> None:
    model = in_eight_bits(small(**options)).float()
    for precision in ("float32", "int8"):
        compiled = compile_for_inference(model, precision=precision)
        still, moving = images(7, 3, 8, 12).float(), images(5, 7, 3, 8, 12).float()
        whole = compiled(still), compiled(moving)
        with monkeypatch.context() as patched:
            patched.setattr(engine, "_ELEMENTS", 3 * engine.widest(model.config, 8, 12))  # three images
            parts = compiled(still), compiled(moving)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depths", [None, (1, 2), (0, 0)])
def test_the_widest_layer_is_found(depths: tuple[int, int] | None) -> None:
    model = small(**(HIERARCHY | {"stage_depths": depths} if depths else {}) | {"time_steps": 1})
    sizes: list[int] = []
    for layer in (m for m in model.stem.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        layer.register_forward_hook(lambda _, args, out: sizes.append(out.numel()))
    model(images(1, 3, 8, 12))
    assert engine.widest(model.config, 8, 12) == max(sizes)


@torch.no_grad()
def test_autocast_does_not_round_anything() -> None:
    x = images(3, 3, 8, 8).float()
    compiled = compile_for_inference(small().float(), precision="float32")
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(x)
    assert torch.equal(found, compiled(x))


def test_shipped_weights_keep_their_accuracy(integers) -> None:
    for name in list_models(pretrained=True):
        model, card = load_model(name)
        if card["data"]["name"] != "digits" or card["config"]["family"] != "spiking":
            continue
        test = data.load("digits", "test")
        batches = list(data.DeviceLoader(test, 90).epoch(0))
        for precision in ("float32", "int8"):
            found = agreement(model, compile_for_inference(model, precision=precision), batches)
            assert found["n"] == len(test)
            assert abs(found["top1"] - found["top1_compiled"]) <= 0.003
            assert found["changed_predictions"] <= 0.01
