"""The fused forward pass of a whole model against the model as it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from .cases import all_pairs, assert_close, describe, noise
from .models import Call, call, certain, tiny

# At least two images: with one, the batch's norms take away all of the head's gradient.
INPUTS = {"an image, one step": (1, (2, 3, 4, 8)), "an image": (4, (2, 3, 4, 8)), "a film": (3, (3, 2, 3, 8, 4))}
BEFORE_NORM = ("proj.bias", "fc1.bias", "fc2.bias")


def assert_same(fused: Call, plain: Call) -> None:
    assert_close(fused.logits, plain.logits, 1e-4, "logits")
    for name, want in plain.gradients.items():
        if not name.endswith(BEFORE_NORM) or float(want.norm()) > 1e-4:  # else the plain one is 0 but for rounding
            assert_close(fused.gradients[name], want, 1e-4, f"gradient of {name}")
    for name, want in plain.buffers.items():
        assert fused.buffers[name].dtype == want.dtype
        assert_close(fused.buffers[name], want, 1e-5, name)


CELLS = all_pairs(
    input=tuple(INPUTS), train=(True, False), neuron=("lif", "plif"),
    constants=({}, {"v_reset": None, "surrogate": "atan"}, {"v_reset": -0.2, "detach_reset": False}),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_fused_equals_plain(cell: dict[str, Any]) -> None:
    time_steps, size = INPUTS[cell["input"]]
    options = {"neuron": cell["neuron"], "time_steps": time_steps, **cell["constants"]}
    model, x = certain(*size, train=cell["train"], **options)
    fused = call(model, x, "fused")
    assert_same(fused, call(model, x, "plain"))
    if cell["train"]:
        for name, gradient in fused.gradients.items():
            if name.endswith(BEFORE_NORM):
                assert torch.equal(gradient, torch.zeros_like(gradient)), name


@pytest.mark.parametrize("pool", [(False, True, True), (False, False, False)])
def test_stems_and_depths(pool: tuple[bool, ...]) -> None:
    model, x = certain(2, 3, 4, 4, train=True, stem_pool=pool, depth=2, time_steps=2)
    assert_same(call(model, x, "fused"), call(model, x, "plain"))


def norms(model: nn.Module) -> list[nn.BatchNorm1d]:
    return [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]  # type: ignore[misc]


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_running_statistics_over_several_calls(momentum: float | None) -> None:
    model, x = certain(2, 3, 4, 4, train=True, time_steps=2)
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = momentum
    fused, plain = (call(model, x, name, calls=3).buffers for name in ("fused", "plain"))
    for name, want in plain.items():
        assert_close(fused[name], want, 1e-5, name)
    assert all(int(b) == 3 for name, b in fused.items() if name.endswith("num_batches_tracked"))


def test_norms_that_are_frozen_one_by_one() -> None:
    model, x = certain(2, 3, 4, 4, train=True, time_steps=2)
    for norm in norms(model)[::2]:
        norm.eval()
    assert_same(call(model, x, "fused"), call(model, x, "plain"))


def test_without_gradients_too() -> None:
    """In inference mode first: what is kept between calls serves training as well."""
    model, x = certain(1, 3, 4, 4, train=False, time_steps=2, embed_dim=24, tau=2.5, gain=6.7)
    plain = call(model, x, "plain")
    model.implementation = "fused"
    with torch.inference_mode():
        assert_close(model(x), plain.logits, 1e-5, "logits")
    with torch.no_grad():
        assert_close(model(x), plain.logits, 1e-5, "logits")
    assert_same(call(model, x, "fused"), plain)


def test_frozen_weights() -> None:
    model, x = certain(2, 3, 4, 4, train=True, time_steps=2)
    model.stem.requires_grad_(False)
    model.implementation = "fused"
    model(x).sum().backward()
    assert all(p.grad is None for p in model.stem.parameters())
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_the_number_of_steps_can_change() -> None:
    model, x = certain(1, 3, 4, 4, train=False, time_steps=4)
    for steps in (1, 3):
        model.time_steps = steps
        assert_same(call(model, x, "fused"), call(model, x, "plain"))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision(how: str, train: bool) -> None:
    """Rounded to bfloat16 some neurons fire elsewhere; every dtype is the plain one and all numbers are finite."""
    model, x = tiny(time_steps=2, neuron="plif").train(train), noise(2, 3, 4, 4, seed=0)
    if how == "weights":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=how == "autocast"):
        fused, plain = (call(model, x, name) for name in ("fused", "plain"))
    assert_close(fused.logits, plain.logits, 0.6, "logits")
    for name, want in plain.buffers.items():
        assert fused.buffers[name].dtype == want.dtype
        assert_close(fused.buffers[name], want, 0.05, name)
    for name, want in plain.gradients.items():
        assert fused.gradients[name].dtype == want.dtype
        assert bool(fused.gradients[name].isfinite().all()), name
