"""Networks whose figures are easily counted by hand."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IntegrateAndFire(nn.Module):
    """Somebody else's neuron: steps in a loop, membranes of its own making, nothing that names it a neuron."""

    def forward(self, current: Tensor) -> Tensor:
        v, fired = torch.zeros_like(current[0]), torch.zeros_like(current)
        for t, x in enumerate(current):
            v = v + x
            fired[t] = (v > 0.5).float()
            v = v * (1 - fired[t])
        return fired


class Net(nn.Module):
    """conv on a still image, neuron, pool, conv, neuron, mean, linear; T steps folded into the batch."""

    def __init__(self, neuron: nn.Module, time_steps: int = 3, repeat_input: bool = False) -> None:
        super().__init__()
        self.time_steps, self.repeat_input = time_steps, repeat_input
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.neuron1, self.neuron2 = neuron, copy.deepcopy(neuron)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.dropout = nn.Dropout(0.5)
        for weight in (self.norm.weight, self.conv2.weight):
            nn.init.uniform_(weight, -1.0, 2.0)  # so that some neurons fire

    def forward(self, x: Tensor) -> Tensor:
        self.seen_training = self.training
        T = self.time_steps
        if x.ndim == 5:
            u = self.norm(self.conv1(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        elif self.repeat_input:
            u = self.norm(self.conv1(x.repeat(T, 1, 1, 1))).unflatten(0, (T, -1))
        else:
            u = self.norm(self.conv1(x)).expand(T, *(-1,) * 4)
        spikes = F.max_pool2d(self.neuron1(u).flatten(0, 1), 2)
        spikes = self.neuron2(self.conv2(spikes).unflatten(0, (T, -1)))
        return self.head(self.dropout(spikes.mean((0, 3, 4))))


class Call(nn.Module):
    """A function of one tensor as a module, with a linear layer at its hand."""

    def __init__(self, function, width: int = 8) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor):
        return self.function(x, self.fc)


class Taps(nn.Module):
    """Keeps what enters it."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.detach().clone()
        return x


IMAGES = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(1))
