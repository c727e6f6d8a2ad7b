"""Small models whose neurons fire, although nobody has trained them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from s2tdpt.models.config import ModelConfig
from s2tdpt.models.registry import build


def draw(batch: int = 4, channels: int = 3, size: tuple[int, int] = (8, 12)) -> Tensor:
    """Random images [batch, channels, *size] in float64."""
    return torch.randn(batch, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


def make(family: str = "spiking", *, size: tuple[int, int] = (8, 12), **options: object) -> nn.Module:
    """A two-block model in float64 with BatchNorm statistics of random images, in evaluation mode; stem stride 2."""
    torch.manual_seed(0)
    settings: dict = {
        "family": family,
        "num_classes": 5,
        "in_channels": 3,
        "time_steps": 3 if family == "spiking" else 1,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "stem_channels": (8, 8),
        "stem_pool": (False, True, False),
    }
    config = ModelConfig(**(settings | options))
    model = build(config).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.mul_(2.5)  # loud enough that neurons of every block fire
        for module in model.modules():
            if hasattr(module, "momentum"):
                module.momentum = 1.0  # one batch sets the statistics
        model.train()(draw(16, config.in_channels, size))
    return model.eval()


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    return draw


@pytest.fixture(scope="session")
def build_model() -> Callable[..., nn.Module]:
    return make


@pytest.fixture(scope="session")
def spiking() -> nn.Module:
    return make()


@pytest.fixture(scope="session")
def ann() -> nn.Module:
    return make("ann")
