"""Spiking patch splitting (SPS): convolutions turn pixels into the membrane potentials of tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..neurons import LIF
from ..ops.norm_lif.reference import pool_by
from .config import ModelConfig


def charges_decide(pool_gradient: str, neuron: nn.Module) -> bool:
    """Whether a pool's gradient goes by charges: without gradients the plain maximum is the same, and seen by hooks."""
    return pool_gradient == "largest" and torch.is_grad_enabled() and isinstance(neuron, LIF)


class Stem(nn.Module):
    """conv-BN, then four times [neuron, max-pool where configured, conv, BN]: pixels to U₀ [T, B, N, D].

    A static image [B, C, H, W] is shown at each of the T steps, so its first conv-BN runs once; [T, B, C, H, W] is an
    input that varies. Tokens run row by row over the grid. Channels are last in memory, so the token view is free.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (config.in_channels, *config.stem_channels, config.stem_width)
        pairs = list(pairwise(widths))
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.neuron = nn.ModuleList(config.make_neuron() for _ in pairs[1:])
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pooled = config.stem_pool
        self.pool_gradient = config.pool_gradient
        self.stride = 2 ** sum(config.stem_pool)
        self.in_channels = config.in_channels

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of height x width pixels."""
        return height // self.stride, width // self.stride

    def check(self, x: Tensor) -> None:
        """`InputError` unless x is [B, C, H, W] or [T, B, C, H, W] with this stem's channels and a size it divides."""
        shape = tuple(x.shape)
        if x.ndim not in (4, 5) or 0 in shape:
            raise InputError(f"the model takes images [B, C, H, W] or [T, B, C, H, W], got {shape}")
        if shape[-3] != self.in_channels:
            raise InputError(f"the model takes {self.in_channels} channels, but the images {shape} have {shape[-3]}")
        if shape[-2] % self.stride or shape[-1] % self.stride:
            raise InputError(f"height and width must be multiples of {self.stride}, got {shape[-2]} x {shape[-1]}")
        if not x.is_floating_point():
            raise InputError(
                f"the model takes normalised images, floating point, not {str(x.dtype).removeprefix('torch.')}"
            )

    def forward(self, x: Tensor, time_steps: int) -> Tensor:
        self.check(x)
        if x.ndim == 4:
            u = self._convolve(0, x).expand(time_steps, *(-1,) * 4)
        else:
            u = self._convolve(0, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        for i, neuron in enumerate(self.neuron, start=1):
            spikes = neuron(u).flatten(0, 1).permute(0, 3, 1, 2)
            if self.pooled[i] and charges_decide(self.pool_gradient, neuron):
                spikes = pool_by(spikes, cast(LIF, neuron).charged(u).flatten(0, 1).permute(0, 3, 1, 2))
            elif self.pooled[i]:
                spikes = self.pool(spikes)
            u = self._convolve(i, spikes).unflatten(0, u.shape[:2])
        return u.flatten(2, 3)

    def _convolve(self, i: int, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to membrane changes [B, H, W, C']."""
        return self.norm[i](self.conv[i](x)).permute(0, 2, 3, 1)
