"""Which parameter goes to which optimiser, and exact resumption."""

import pytest
import torch
from torch import nn

from s2tdpt.errors import CheckpointError
from s2tdpt.training.muon import Muon
from s2tdpt.training.optim import build_optimizer
from s2tdpt.training.recipe import OptimizerRecipe


class Net(nn.Module):
    def __init__(self, hidden=6):
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv2d(2, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)])
        self.inner = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.mlp = nn.Linear(hidden, hidden)
        self.frozen = nn.Linear(hidden, hidden, bias=False).requires_grad_(False)
        self.tau = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(hidden, 3)

    def forward(self, x):
        for layer in self.stem:
            x = layer(x)
        x = self.inner(x).mean((2, 3)) * self.tau
        return self.head(self.frozen(self.mlp(x).relu()))


def _train(model, optimizers, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizers.zero_grad()
        model(torch.randn(4, 2, 5, 5, generator=generator)).square().mean().backward()
        optimizers.step()


def _groups(model, optimizers):
    names = {param: name for name, param in model.named_parameters()}
    return [
        (type(optimizer), group["weight_decay"], {names[param] for param in group["params"]})
        for optimizer in optimizers.optimizers
        for group in optimizer.param_groups
    ]


ONE_DIMENSIONAL = {"stem.1.weight", "stem.1.bias", "inner.bias", "mlp.bias", "tau", "head.bias"}


def test_adamw_decays_matrices_only_and_skips_frozen_ones():
    model = Net()
    matrices, vectors = _groups(model, build_optimizer(model, OptimizerRecipe("adamw", weight_decay=0.1)))
    assert matrices == (torch.optim.AdamW, 0.1, {"stem.0.weight", "inner.weight", "mlp.weight", "head.weight"})
    assert vectors == (torch.optim.AdamW, 0.0, ONE_DIMENSIONAL)


def test_muon_takes_the_inner_matrices_and_adamw_the_edges():
    model = Net()
    optimizers = build_optimizer(model, OptimizerRecipe("muon", lr=0.03, adamw_lr=0.002, weight_decay=0.1))
    muon, edges, vectors = _groups(model, optimizers)
    assert muon == (Muon, 0.1, {"inner.weight", "mlp.weight"})
    assert edges == (torch.optim.AdamW, 0.1, {"stem.0.weight", "head.weight"})
    assert vectors == (torch.optim.AdamW, 0.0, ONE_DIMENSIONAL)
    rates = [group["lr"] for optimizer in optimizers.optimizers for group in optimizer.param_groups]
    assert rates == [0.03, 0.002, 0.002]
    assert len(optimizers.parameters()) == len(ONE_DIMENSIONAL) + 4


def test_set_lr_factor_scales_the_recipes_rates_every_time():
    optimizers = build_optimizer(Net(), OptimizerRecipe("muon", lr=0.03, adamw_lr=0.002))
    optimizers.set_lr_factor(0.1)
    optimizers.set_lr_factor(0.5)
    rates = [group["lr"] for optimizer in optimizers.optimizers for group in optimizer.param_groups]
    assert rates == [0.015, 0.001, 0.001]
    tensor = torch.tensor(0.0)
    optimizers.optimizers[0].param_groups[0]["lr"] = tensor
    optimizers.set_lr_factor(2.0)
    assert tensor == pytest.approx(0.06)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_loss_falls(name):
    torch.manual_seed(0)
    model = Net()
    x = torch.randn(8, 2, 5, 5)
    before = model(x).square().mean()
    _train(model, build_optimizer(model, OptimizerRecipe(name, lr=0.02, adamw_lr=0.01)), 30)
    assert model(x).square().mean() < 0.3 * before


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resumed_training_is_bit_identical(name):
    recipe = OptimizerRecipe(name, lr=0.01)
    model = Net()
    optimizers = build_optimizer(model, recipe)
    _train(model, optimizers, 3, seed=1)
    again = Net()
    again.load_state_dict(model.state_dict())
    resumed = build_optimizer(again, recipe)
    resumed.load_state_dict({key: value.clone() for key, value in optimizers.state_dict().items()})
    for run in (optimizers, resumed):  # the groups must still be the live ones after loading
        run.set_lr_factor(0.3)
    _train(model, optimizers, 3, seed=2)
    _train(again, resumed, 3, seed=2)
    weights = again.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert optimizers.state_dict().keys() == resumed.state_dict().keys()


def test_another_models_state_is_refused():
    recipe = OptimizerRecipe("adamw")
    model = Net()
    optimizers = build_optimizer(model, recipe)
    _train(model, optimizers, 1)
    with pytest.raises(CheckpointError, match="another shape"):
        build_optimizer(Net(hidden=7), recipe).load_state_dict(optimizers.state_dict())
    with pytest.raises(CheckpointError, match="does not train"):
        build_optimizer(nn.Linear(2, 2), recipe).load_state_dict(optimizers.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_steps_and_learning_rates_replay_in_a_cuda_graph(name):
    recipe = OptimizerRecipe(name, lr=0.01)
    graphed, eager = Net().cuda(), Net().cuda()
    eager.load_state_dict(graphed.state_dict())
    in_graph, outside = build_optimizer(graphed, recipe), build_optimizer(eager, recipe)
    for ours, theirs in zip(in_graph.parameters(), outside.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        in_graph.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        in_graph.step()
    outside.step()
    for factor in (0.5, 0.1):
        for run, step in ((in_graph, graph.replay), (outside, outside.step)):
            run.set_lr_factor(factor)
            step()
    for ours, theirs in zip(in_graph.parameters(), outside.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
