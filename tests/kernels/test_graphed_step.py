"""Training steps recorded as a CUDA graph: the same numbers as without, in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s2tdpt.training.graph import GraphedStep
from s2tdpt.training.optim import build_optimizer
from s2tdpt.training.recipe import OptimizerRecipe

from .cases import INTERPRETED, assert_close
from .models import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device, not the interpreter")]


@pytest.fixture(autouse=True)
def one_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


class Training:
    """A model in training, and its step, graphed or not."""

    def __init__(self) -> None:
        self.model = tiny().cuda().train()
        self.model.implementation = "fused"
        self.optimizers = build_optimizer(self.model, OptimizerRecipe(name="adamw", lr=1e-3))
        self.graph = GraphedStep(self.step, self.state)

    def step(self, x: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(x), target)
        loss.backward()
        self.optimizers.step()
        self.optimizers.zero_grad()
        return loss.detach().clone()

    def state(self) -> Iterator[Tensor]:
        yield from self.model.state_dict().values()
        yield from self.optimizers.state_dict().values()

    def graphed(self, x: Tensor, target: Tensor) -> Tensor:
        return self.graph(x, target, key=self.model.time_steps).clone()  # the next call overwrites it


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 4, 3, 8, 8, generator=generator).cuda()
    return list(zip(images, torch.randint(5, (count, 4), generator=generator).cuda(), strict=True))


def test_graphed_steps_equal_eager_steps() -> None:
    eager, graphed = Training(), Training()
    for time_steps, (x, target) in zip((2, 2, 1, 2, 1), batches(5), strict=True):
        eager.model.time_steps = graphed.model.time_steps = time_steps
        assert_close(graphed.graphed(x, target), eager.step(x, target), 1e-5, "loss")
    for (name, ours), theirs in zip(graphed.model.state_dict().items(), eager.model.state_dict().values(), strict=True):
        assert_close(ours, theirs, 1e-4, name)
    moments = eager.optimizers.state_dict()
    for name, ours in graphed.optimizers.state_dict().items():
        assert_close(ours, moments[name], 1e-4, name)


def test_recording_changes_nothing() -> None:
    run = Training()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.graph.record(*batches(1)[0], key=1)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in run.optimizers.state_dict().items():
        assert not bool(tensor.any()), name


def test_a_resumed_run_keeps_the_recorded_addresses() -> None:
    run, (first, second, third) = Training(), batches(3)
    run.graphed(*first)
    saved = [
        {name: tensor.clone() for name, tensor in part.state_dict().items()} for part in (run.model, run.optimizers)
    ]
    addresses = [tensor.data_ptr() for tensor in run.state()]
    loss = run.graphed(*second)
    run.graphed(*third)
    run.model.load_state_dict(saved[0])
    run.optimizers.load_state_dict(saved[1])
    assert [tensor.data_ptr() for tensor in run.state()] == addresses
    assert_close(run.graphed(*second), loss, 1e-6, "loss")
    assert len(run.graph._recordings) == 1


def test_cleared_recordings_are_made_again() -> None:
    run, (first, second) = Training(), batches(2)
    run.graphed(*first)
    run.graph.clear()
    twin = Training()
    twin.step(*first)
    assert_close(run.graphed(*second), twin.step(*second), 1e-5, "loss")


def test_every_input_is_taken_anew() -> None:
    """As a teacher's answers are, beside images and targets."""
    graph = GraphedStep(lambda x, target, opinion: x.sum() + 2 * target.sum() + 3 * opinion.sum(), lambda: ())
    for value in (1.0, 2.0):
        inputs = [torch.full((2,), value * factor, device="cuda") for factor in (1, 10, 100)]
        assert float(graph(*inputs, key=1)) == value * 2 * (1 + 20 + 300)
    assert len(graph._recordings) == 1
    half = [tensor.half() for tensor in inputs]
    graph(*half, key=1)
    assert len(graph._recordings) == 2
