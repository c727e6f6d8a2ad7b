"""Small spiking Transformers, and what one call of them does."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from s2tdpt import create_model
from s2tdpt.models.dispatch import use_fused
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.ops import observe

from .cases import DEVICE, distance_to_threshold, noise

TINY: dict[str, Any] = {
    "gain": 7.3,  # with 8, opposite time differences add up to exactly the threshold
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "stem_channels": (8, 12),
    "stem_pool": (False, True, False),
    "num_classes": 5,
}
CLOSE = 4e-6


def tiny(seed: int = 0, **options: Any) -> SpikingTransformer:
    """A model whose norms are loud enough, and have seen enough noise, that its neurons fire."""
    torch.manual_seed(seed)
    model = cast(SpikingTransformer, create_model("s2tdpt_tiny", **TINY | options))
    model.implementation = "plain"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(2.5).add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(3):
            model(torch.randn(4, 3, 8, 8))
    return model.to(DEVICE)


def certain(*size: int, train: bool, **options: Any) -> tuple[SpikingTransformer, Tensor]:
    """A model and images for which no neuron comes so near its threshold that rounding decides."""
    for seed in range(20):
        model, x = tiny(seed, **options).train(train), noise(*size, seed=seed)
        if _distance_to_threshold(model, x) > CLOSE:
            return model, x
    raise AssertionError("every draw has a neuron at its threshold")


def _distance_to_threshold(model: SpikingTransformer, x: Tensor) -> float:
    nearest = []

    def listen(name: str, info: dict[str, Any]) -> None:
        if name == "lif":
            neuron = {"v_threshold": info["v_threshold"], "v_reset": model.config.v_reset, "decay_input": True}
            distance = distance_to_threshold(info["current"].detach().double(), 1 / model.config.tau, neuron)
            nearest.append(float(distance.min()))

    with observe.observe(listen):
        copy.deepcopy(model)(x)
    return min(nearest)


@dataclass
class Call:
    logits: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def call(model: SpikingTransformer, x: Tensor, implementation: str, calls: int = 1) -> Call:
    """Logits, gradients of all parameters and of the images, and buffers, of a copy of the model."""
    model, x = copy.deepcopy(model), x.detach().requires_grad_()
    model.implementation = implementation
    assert use_fused(model, x) is (implementation == "fused")
    for _ in range(calls):
        logits = model(x)
    leaves = {"images": x} | dict(model.named_parameters())
    grad = noise(*logits.shape, seed=7, dtype=logits.dtype)
    gradients = torch.autograd.grad(logits, list(leaves.values()), grad)
    return Call(logits, dict(zip(leaves, gradients, strict=True)), dict(model.named_buffers()))
