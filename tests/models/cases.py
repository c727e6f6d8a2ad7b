"""Small models whose neurons fire although nobody has trained them."""

from __future__ import annotations

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

HIERARCHY: dict[str, Any] = SMALL | {
    "stem_channels": (8,),
    "stem_pool": (False, False),
    "stage_widths": (8, 16),
    "stage_depths": (1, 2),
    "stage_mixers": ("none", "dwconv"),
    "mixer": "dwconv",
}


def images(*size: int, seed: int = 0) -> Tensor:
    """float64, of 8-bit steps, so that sums of pixels are the same in any order."""
    drawn = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (drawn * 64).round() / 64


def seasoned(model: nn.Module, channels: int = 3) -> nn.Module:
    """The model in float64 and evaluation mode, with statistics of noise and loud norms, so that all neurons fire."""
    model = model.double().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.mul_(2.5)
        for seed in range(20):
            model(images(8, channels, 8, 12, seed=seed))
    return model.eval()


def small(name: str = "s2tdpt_tiny", **options: Any) -> nn.Module:
    """A seasoned model of the small geometry."""
    torch.manual_seed(0)
    settings = SMALL | ({"time_steps": 1} if name.startswith("vit") else {}) | options
    return seasoned(create_model(name, **settings), settings.get("in_channels", 3))


def is_binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())
