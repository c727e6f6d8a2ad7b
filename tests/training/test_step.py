"""One training step: precision, clipping, statistics, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from s2tdpt.training import setup, step
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.step import Loss, reestimate_batch_norm

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bfloat16_is_used_when_asked_for(tiny: Recipe, precision: str) -> None:
    seen: list[torch.dtype] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loss = Loss(model, CPU, precision)(torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
    assert seen == [getattr(torch, precision)]
    assert loss.dtype == torch.float32


def test_clipping_bounds_the_gradient(tiny: Recipe) -> None:
    recipe = tiny.replace(**{"optimizer.clip_grad_norm": 1e-3})
    parts = setup.Setup.build(recipe, Ranks(CPU), None, False)
    norms: list[float] = []

    def record() -> None:
        grads = [p.grad for p in parts.optimizers.parameters() if p.grad is not None]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    parts.optimizers.step = record  # pyright: ignore[reportAttributeAccessIssue]
    parts.train_step(*next(parts.loader.epoch(0)))
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_reestimated_statistics_are_the_plain_mean_over_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 2))
    batches = [torch.randn(8, 3) * scale for scale in (1.0, 2.0, 3.0)]
    reestimate_batch_norm(model, batches, CPU, "float32")
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in batches]).mean(0))
    assert norm.momentum == 0.3


def test_warming_up_changes_nothing(tiny: Recipe) -> None:
    parts = setup.Setup.build(tiny, Ranks(CPU), None, False)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    x, target = next(parts.loader.epoch(0))
    parts.train_step.warm_up(x, target, [1, 2])
    assert parts.model.time_steps == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in parts.model.state_dict().items())
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert parts.train_step.take_report() == []


@pytest.mark.slow
def test_compiled_steps_agree_with_eager_ones(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for each number of time steps, compiled before the first is needed."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: original(module, backend=backend, **options))
    recipe = tiny.replace(**{"optimizer.name": "adamw", "compile": True})
    losses = []
    for compile_it in (True, False):
        parts = setup.Setup.build(recipe.replace(compile=compile_it), Ranks(CPU), None, False)
        assert len(compiled) == 2
        for time_steps in (1, 2, 1):
            step.set_time_steps(parts.model, time_steps)
            for x, target in parts.loader.epoch(0):
                parts.train_step(x, target)
        losses.append(parts.train_step.take_report())
    assert len(compiled) == 2
    for compiled_step, eager_step in zip(*losses, strict=True):
        assert compiled_step == pytest.approx(eager_step, rel=1e-5)
