"""Small models whose neurons fire although nobody has trained them, with weights that 8 bits hold where asked."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from s2tdpt import create_model

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "stem_channels": (8, 12),
    "stem_pool": (False, True, False),
    "time_steps": 3,
    "num_classes": 5,
}


def images(*size: int, seed: int = 0) -> Tensor:
    """float64, of 8-bit steps, so that sums of pixels are the same in any order."""
    drawn = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (drawn * 64).round() / 64


def small(**options: Any) -> nn.Module:
    """A model in float64 and evaluation mode, with loud norms that are not trivial and statistics of noise."""
    torch.manual_seed(0)
    model = create_model("s2tdpt_tiny", **(SMALL | options)).double().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight += 0.2 * torch.randn_like(weight)
            if "norm" in name and name.endswith("weight"):
                weight *= 2.5
        for seed in range(10):
            model(images(8, 3, 8, 12, seed=seed))
    return model.eval()


@torch.no_grad()
def in_eight_bits(model: nn.Module) -> nn.Module:
    """A copy whose matrices and kernels lie on 255 levels a channel."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        if weight.ndim > 1:
            rows = weight.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).float().double() / 127
            rows.copy_((rows / scale).round() * scale)
    return model
