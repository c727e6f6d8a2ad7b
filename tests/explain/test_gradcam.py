"""Grad-CAM: against classic CAM, against the definition written out, and without a trace in the model."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from s2tdpt.errors import InputError, MissingExtraError
from s2tdpt.explain import class_activation_map, firing_rates, grad_cam


@pytest.mark.parametrize("time_steps", [1, 3])
@pytest.mark.parametrize(("channels", "size", "batch"), [(3, (8, 12), 4), (1, (6, 4), 1)])
def test_last_block_is_classic_cam(build_model, images, time_steps, channels, size, batch) -> None:
    model = build_model(size=size, in_channels=channels, time_steps=time_steps)
    x = images(batch, channels, size)
    tokens = size[0] * size[1] // 4
    cam = grad_cam(model, x)
    classic = class_activation_map(model, x)
    assert cam.maps.shape == (batch, size[0] // 2, size[1] // 2)
    assert cam.upsampled.shape == (batch, *size)
    assert classic.abs().max() > 1e-2
    torch.testing.assert_close(cam.maps * time_steps * tokens, classic, rtol=1e-12, atol=1e-12)


def test_last_block_gradient_is_the_head_weight(spiking, images) -> None:
    x = images()
    with torch.no_grad():
        features = spiking.forward_features(x)  # [T, B, N, D]
    steps, batch, tokens, _ = features.shape
    weight = spiking.head.weight.detach()[3] / (steps * tokens)
    expected = (features @ weight).view(steps, batch, 4, 6)
    torch.testing.assert_close(grad_cam(spiking, x, target=3).per_step, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("site", ["block", "attention"])
def test_equals_the_definition_at_the_first_block(spiking, images, site) -> None:
    x, target = images(), torch.tensor([0, 4, 2, 1])
    first, second = spiking.blocks
    u = spiking.stem(x, spiking.time_steps)
    change = first.attn(first.neuron(u))
    after = u + change
    out = after + first.mlp(after)
    seen = out if site == "block" else change
    logits = spiking.forward_head(second(out))
    (gradient,) = torch.autograd.grad(logits.gather(1, target.unsqueeze(1)).sum(), seen)
    expected = (gradient.mean(2, keepdim=True) * seen).sum(-1).mean(0).view(4, 4, 6)
    cam = grad_cam(spiking, x, block=0, site=site, target=target)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(cam.maps, expected.detach(), rtol=1e-10, atol=1e-14)


def test_default_target_is_the_prediction(spiking, images) -> None:
    x = images()
    predicted = spiking(x).argmax(-1)
    cam = grad_cam(spiking, x, block=0)
    assert torch.equal(cam.target, predicted)
    assert torch.equal(cam.maps, grad_cam(spiking, x, block=0, target=predicted).maps)
    assert not torch.equal(cam.maps, grad_cam(spiking, x, block=0, target=(predicted + 1) % 5).maps)


def test_input_that_varies_over_time(spiking, images) -> None:
    x = torch.stack([images(2), images(2).flip(-1)])
    cam = grad_cam(spiking, x)
    assert cam.per_step.shape == (2, 2, 4, 6)
    torch.testing.assert_close(cam.maps * 2 * 24, class_activation_map(spiking, x), rtol=1e-12, atol=1e-12)


def test_ann_twin(ann, images) -> None:
    x = images()
    for site in ("block", "attention"):
        assert grad_cam(ann, x, block=0, site=site).maps.abs().max() > 1e-5


def test_frozen_model_in_inference_mode(build_model, images) -> None:
    model, x = build_model(), images()
    expected = grad_cam(model, x, block=0).maps
    model.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(grad_cam(model, x * 1, block=0).maps, expected)


def traces(model: nn.Module) -> tuple:
    """All that explaining could leave behind."""
    modules = list(model.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)
    gradients = [p.grad is None for p in model.parameters()]
    return [m.training for m in modules], hooks, gradients, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(build_model, images, monkeypatch, fails) -> None:
    model = build_model()
    model.train()
    model.blocks[0].attn.eval()  # somebody has frozen a part: it must stay so
    before = traces(model)
    if fails:

        def broken(u: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory")

        monkeypatch.setattr(model, "forward_head", broken)
    for explain in (grad_cam, firing_rates):
        if fails:
            with pytest.raises(RuntimeError, match="no memory"):
                explain(model, images())
        else:
            explain(model, images())
    modes, hooks, gradients, state = traces(model)
    assert (modes, hooks, gradients) == before[:3]
    assert all(torch.equal(state[key], before[3][key]) for key in state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 2}, "block 2 does not exist: the model has 2 blocks"),
        ({"site": "mlp"}, "'block' or 'attention', got 'mlp'"),
        ({"target": 5}, r"outside 0\.\.4"),
        ({"target": torch.tensor([0, 1])}, "one for each of 4 images"),
    ],
)
def test_bad_arguments(spiking, images, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        grad_cam(spiking, images(), **arguments)


def test_bad_images_and_models(spiking, images) -> None:
    for bad in (images()[0], images()[:0], (images() * 255).byte()):
        with pytest.raises(InputError, match="floats"):
            grad_cam(spiking, bad)
    with pytest.raises(InputError, match="Linear has no `blocks`"):
        grad_cam(nn.Linear(2, 2), images())


def test_missing_extra_is_named(spiking, images, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"s2tdpt\[explain\]"):
        grad_cam(spiking, images())
