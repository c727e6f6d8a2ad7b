"""The price on spikes: its gradient is that of the penalty written out, and the penalty is the energy counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2tdpt.energy import count
from s2tdpt.errors import RecipeError
from s2tdpt.models import create_model
from s2tdpt.models.dispatch import watched
from s2tdpt.ops.charge.reference import add_constant
from s2tdpt.training.engine import train
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.spike_cost import put_price, spiking_macs

SMALL: dict[str, Any] = {
    "num_classes": 3,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_ratio": 2,
    "stem_channels": (4, 4, 8),
}


def lively(seed: int = 0, **options: Any) -> nn.Module:
    """A model in float64 whose norms are loud enough that its neurons fire."""
    torch.manual_seed(seed)
    model = create_model("s2tdpt_tiny", **{**SMALL, "time_steps": 3, **options}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(2.5).add_(0.2)
    return model.train()


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def penalty_of(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the MAC-weighted mean density of all layers' input spikes, by hooks that see each layer."""
    macs = spiking_macs(model, x[:1])
    densities: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        densities.append(inputs[0].mean() * (macs[layer] / sum(macs.values())))

    hooks = [layer.register_forward_pre_hook(look) for layer in macs]
    out = model(x)
    for hook in hooks:
        hook.remove()
    return out, torch.stack(densities).sum()


@pytest.mark.parametrize("stages", [False, True])
def test_the_gradient_is_that_of_the_penalty(stages: bool) -> None:
    model = lively(**({"stage_widths": (8,), "stage_depths": (1,), "stage_mixers": ("dwconv",)} if stages else {}))
    priced = copy.deepcopy(model)
    x = images(4)
    put_price(priced, 0.7, x[:1])
    names = [name for name, _ in model.named_parameters()]
    out, penalty = penalty_of(model, x)
    expected = torch.autograd.grad(out.square().mean() + 0.7 * penalty, list(model.parameters()))
    bare = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    got = torch.autograd.grad(priced(x).square().mean(), list(priced.parameters()))
    for name, g, e in zip(names, got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-14, msg=name)
    assert any(not torch.allclose(e, b) for e, b in zip(expected, bare, strict=True))


def test_the_penalty_is_the_mean_firing_rate_of_the_energy_report() -> None:
    model = lively().eval()
    x = images(2)
    report = count(model, x)
    layers = [layer for layer in report.layers if layer.op in ("conv2d", "linear") and layer.spiking_macs]
    rate = sum(layer.counts.sops for layer in layers) / sum(layer.spiking_macs for layer in layers)
    with torch.no_grad():
        assert float(penalty_of(model, x)[1]) == pytest.approx(rate, rel=1e-9)
    macs = spiking_macs(model, x[:1])
    assert sum(macs.values()) == pytest.approx(sum(layer.spiking_macs for layer in layers))


def test_a_priced_model_answers_as_before_and_counts_as_unwatched() -> None:
    model = lively()
    x = images(2)
    plain = copy.deepcopy(model)(x)
    put_price(model, 0.7, x[:1])
    assert torch.equal(model(x), plain)
    assert not watched(model)
    model.get_submodule("blocks.0.mlp.fc1").register_forward_hook(lambda *_: None)
    assert watched(model)


def test_without_spikes_there_is_nothing_to_price(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(**{"model.name": "vit_tiny", "schedule.time_steps": "1:1", "spike_cost": 0.1})
    with pytest.raises(RecipeError, match="spike_cost: the model has no spikes"):
        train(recipe, tmp_path / "run", device="cpu", progress=False)


def test_priced_spikes_become_fewer(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(**{"schedule.time_steps": "2:12", "ema_decay": 0.0, "eval_every": 12})
    rates = [
        train(recipe.replace(spike_cost=cost), tmp_path / str(cost), device="cpu", progress=False)["mean_firing_rate"]
        for cost in (0.0, 30.0)
    ]
    assert rates[1] < 0.8 * rates[0], rates


def test_in_bfloat16_a_small_constant_is_not_lost_in_the_sum() -> None:
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    constant = 1e-4  # a thousandth of what most of x can tell apart
    moved = add_constant(x, constant).double() - x.double()
    assert float(moved.mean()) == pytest.approx(constant, rel=0.1)
    for axis in (0, 1):
        assert float(moved.mean(axis).std()) < 20 * constant
    assert float((x + constant).double().sub(x.double()).mean()) < 0.5 * constant, "rounding to the nearest would do"
    assert torch.equal(add_constant(x.double(), constant), x.double() + constant)
