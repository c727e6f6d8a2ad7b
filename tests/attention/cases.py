"""Attention layers that have seen some spikes, so that their neurons fire in evaluation mode too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2tdpt.attention import SpikingSelfAttention

T, B, N, D, HEADS = 3, 2, 10, 24, 3


def spikes(density: float = 0.3, *, tokens: int = N, batch: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(T, batch, tokens, D, generator=generator) < density).double()


def seasoned(layer: SpikingSelfAttention) -> SpikingSelfAttention:
    """The layer in float64 and evaluation mode, with statistics of real spikes and norms of random affine weights."""
    layer = layer.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (layer.qkv_norm, layer.proj_norm):
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator, dtype=torch.float64) + 1.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator, dtype=torch.float64))
        for seed in range(20):
            layer(spikes(batch=8, seed=seed))
    return layer.eval()


def record_inputs(module: nn.Module, kind: type[nn.Module]) -> dict[str, Tensor]:
    """Fills with the last input of each submodule of a kind, by name."""
    seen: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if isinstance(part, kind):
            part.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
    return seen


def is_binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def fires(x: Tensor) -> bool:
    """Binary, neither silent nor saturated."""
    return is_binary(x) and 0.01 < x.mean().item() < 0.99
