"""The hierarchical stem: stages of local blocks on ever coarser grids, between the first convolutions and attention."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from ..neurons import LIF
from ..normalisation import BatchNorm
from ..ops.norm_lif.reference import pool_by
from .block import Grid, LocalBlock, as_images, as_tokens
from .config import ModelConfig
from .stem import Stem, charges_decide


class Downsample(nn.Module):
    """Membranes [T, B, N, C] to [T, B, N / 4, D] on half the grid: two paths from the same spikes s = SN(U), added.

    conv 3x3-BN-SN-max-pool-conv 3x3-BN, where the maximum is taken of spikes, and a shortcut conv 2x2 (stride 2)-BN.
    """

    def __init__(self, config: ModelConfig, width: int, out: int) -> None:
        super().__init__()
        self.neuron = config.make_neuron()
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm1 = BatchNorm(out)
        self.neuron1 = config.make_neuron()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool_gradient = config.pool_gradient
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(out)
        self.shortcut = nn.Conv2d(width, out, 2, stride=2, bias=False)
        self.shortcut_norm = BatchNorm(out)

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        T = len(u)
        spikes = as_images(self.neuron(u), grid)
        current = self.norm1(as_tokens(self.conv1(spikes), T))
        fine = as_images(self.neuron1(current), grid)
        if charges_decide(self.pool_gradient, self.neuron1):
            pooled = pool_by(fine, as_images(cast(LIF, self.neuron1).charged(current), grid))
        else:
            pooled = self.pool(fine)
        main = self.norm2(as_tokens(self.conv2(pooled), T))
        return main + self.shortcut_norm(as_tokens(self.shortcut(spikes), T))


class Stage(nn.Module):
    """Local blocks on one grid, and the way down to the next."""

    def __init__(self, config: ModelConfig, width: int, depth: int, mixer: str, out: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LocalBlock(config, width, mixer) for _ in range(depth))
        self.down = Downsample(config, width, out)

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        for block in self.blocks:
            u = block(u, grid)
        return self.down(u, grid)


class HierarchicalStem(Stem):
    """The stem's convolutions, then stages: pixels to U₀ [T, B, N, D] of the blocks with attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        ways = pairwise((*config.stage_widths, config.embed_dim))
        depths = zip(config.stage_depths, config.stage_mixers, strict=True)
        self.stages = nn.ModuleList(
            Stage(config, width, depth, mixer, out) for (width, out), (depth, mixer) in zip(ways, depths, strict=True)
        )
        self.stride *= 2 ** len(self.stages)

    def grids(self, height: int, width: int) -> list[Grid]:
        """Rows and columns of tokens in each stage, for an image of height x width pixels."""
        rows, columns = self.grid(height, width)
        return [(rows << i, columns << i) for i in range(len(self.stages), 0, -1)]

    def forward(self, x: Tensor, time_steps: int) -> Tensor:
        u = super().forward(x, time_steps)
        for stage, grid in zip(self.stages, self.grids(*x.shape[-2:]), strict=True):
            u = stage(u, grid)
        return u


def build_stem(config: ModelConfig) -> Stem:
    """The stem of a configuration: convolutions alone, or followed by stages."""
    return HierarchicalStem(config) if config.stage_widths else Stem(config)
