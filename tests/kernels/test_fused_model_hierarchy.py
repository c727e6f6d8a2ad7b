"""The fused forward pass of hierarchical models against the model as it reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from .cases import all_pairs, assert_close, describe, noise
from .models import SpikingTransformer, call, certain, tiny
from .test_fused_model import BEFORE_NORM, assert_same

HIERARCHY: dict[str, Any] = {
    "stem_channels": (8,),
    "stem_pool": (False, False),
    "stage_widths": (8, 16),
    "stage_depths": (1, 1),
    "stage_mixers": ("none", "dwconv"),
    "mixer": "dwconv",
}
INPUTS = {"an image, one step": (1, (2, 3, 4, 8)), "an image": (3, (2, 3, 8, 4)), "a film": (2, (2, 2, 3, 4, 8))}
CELLS = all_pairs(
    input=tuple(INPUTS), train=(True, False), neuron=("lif", "plif"), mixer=("dwconv", "conv"),
    constants=({}, {"v_reset": None, "surrogate": "atan", "detach_reset": False}),
)  # fmt: skip


def check(model: SpikingTransformer, x: Tensor) -> None:
    """In training biases before a norm learn nothing: the plain gradient is rounding, the fused one nought."""
    fused, plain = call(model, x, "fused"), call(model, x, "plain")
    for name in [n for n in plain.gradients if model.training and n.endswith(BEFORE_NORM)]:
        del plain.gradients[name]
        assert not fused.gradients[name].any(), name
    assert_same(fused, plain)


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_fused_equals_plain(cell: dict[str, Any]) -> None:
    time_steps, size = INPUTS[cell["input"]]
    options = {"neuron": cell["neuron"], "mixer": cell["mixer"], "time_steps": time_steps, **cell["constants"]}
    model, x = certain(*size, train=cell["train"], **HIERARCHY | options)
    check(model, x)


@pytest.mark.parametrize(
    "options",
    [
        {"stage_widths": (8,), "stage_depths": (2,), "stage_mixers": ("conv",)},
        {"stage_depths": (0, 1)},
        {"stem_channels": (8, 8), "stem_pool": (False, True, False), "stage_widths": (8,), "stage_depths": (1,),
         "stage_mixers": ("dwconv",), "depth": 2},
        {"stem_channels": (), "stem_pool": (False,), "stage_widths": (20,), "stage_depths": (1,),
         "stage_mixers": ("dwconv",)},
        {"stage_widths": (), "stage_depths": (), "stage_mixers": ()},
    ],
    ids=["one stage", "a stage without blocks", "a pool in the stem", "no stem, 20 channels", "mixers without stages"],
)  # fmt: skip
def test_geometries(options: dict[str, Any]) -> None:
    model, x = certain(2, 3, 8, 4, train=True, time_steps=2, **HIERARCHY | options)
    check(model, x)


@pytest.mark.parametrize("options", [HIERARCHY, {}], ids=["stages", "a stem"])
def test_pools_whose_gradient_goes_to_the_largest_charge(options: dict[str, Any]) -> None:
    model, x = certain(2, 3, 4, 8, train=True, time_steps=2, pool_gradient="largest", **options)
    check(model, x)
    first = tiny(time_steps=2, **options).train()
    first.load_state_dict(model.state_dict())
    largest, other = call(model, x, "plain"), call(first, x, "plain")
    assert torch.equal(largest.logits, other.logits)
    assert not torch.allclose(largest.gradients["stem.conv.0.weight"], other.gradients["stem.conv.0.weight"])


@pytest.mark.parametrize("train", [True, False])
def test_in_bfloat16(train: bool) -> None:
    """Every dtype is the plain one and all numbers are finite; a batch's own norms spread what rounding changes."""
    model, x = tiny(time_steps=2, **HIERARCHY).train(train), noise(2, 3, 8, 8, seed=0)
    with torch.autocast(x.device.type, torch.bfloat16):
        fused, plain = (call(model, x, name) for name in ("fused", "plain"))
    assert fused.logits.dtype == plain.logits.dtype
    if not train:
        assert_close(fused.logits, plain.logits, 0.3, "logits")
    for name, want in plain.gradients.items():
        assert fused.gradients[name].dtype == want.dtype
        assert bool(fused.gradients[name].isfinite().all()), name


def test_it_compiles_whole() -> None:
    torch.compiler.reset()
    stages = {"stage_widths": (8,), "stage_depths": (1,), "stage_mixers": ("dwconv",), "mixer": "none"}
    model, x = certain(2, 3, 4, 4, train=True, time_steps=1, **HIERARCHY | stages)
    model.implementation = "fused"
    twin = copy.deepcopy(model)
    logits, twins_logits = model(x), torch.compile(twin, backend="aot_eager", fullgraph=True)(x)
    assert_close(twins_logits, logits, 1e-5, "logits")
    for run in (logits, twins_logits):
        run.square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_close(theirs.grad, ours.grad, 1e-5, f"gradient of {name}")  # type: ignore[arg-type]
    torch.compiler.reset()
