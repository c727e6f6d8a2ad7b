"""A price on spikes: the recipe's `spike_cost`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2tdpt.errors import RecipeError
from s2tdpt.models.dispatch import module_by_module
from s2tdpt.neurons import LIF
from s2tdpt.ops.charge import ATTRIBUTE, ChargeInput
from s2tdpt.training.evaluate import inference
from s2tdpt.training.optim import edge_parameters


def put_price(model: nn.Module, cost: float, image: Tensor) -> None:
    """From now on gradients are those of loss + cost · (SOPs / dense MACs of all spiking layers), mean over images.

    A layer's SOPs are its MACs times the density of its input spikes, as energy is counted, so the penalty is `cost`
    times the mean firing rate weighted by MACs. Spiking layers are all convolutions and linear layers but the first
    convolution and the head. `image` [1, C, H, W] shows how large they are. `RecipeError` for a model without spikes.
    """
    if not any(isinstance(module, LIF) for module in model.modules()):
        raise RecipeError("spike_cost: the model has no spikes: set it to 0")
    macs = spiking_macs(model, image)
    for layer, own in macs.items():
        setattr(layer, ATTRIBUTE, cost * own / sum(macs.values()))
        layer.register_forward_pre_hook(ChargeInput())


def spiking_macs(model: nn.Module, image: Tensor) -> dict[nn.Module, int]:
    """Multiply-accumulates, all steps and padding included, of each layer whose input is spikes."""
    edges = edge_parameters(model)
    macs: dict[nn.Module, int] = {}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
        macs[layer] = macs.get(layer, 0) + output.numel() * weight[0].numel()

    layers = (m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight not in edges)
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), inference(model), module_by_module(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return macs
