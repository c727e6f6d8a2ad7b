"""Where and how much a spiking model fires: rates by layer, the firing-rate map over tokens, and spike trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.dispatch import module_by_module
from .probe import blocks, check_images, evaluating, spiking_neurons, token_grid, watching


@dataclass(frozen=True)
class FiringRates:
    """Spikes per neuron and step (fractions) of one batch.

    `layers`: by name of the neuron layer, in the order in which they fire. `attention`: of each block's attention
    neuron (the one after w·V). `maps` [B, h, w]: of the attention neurons at each token, mean over heads, steps and
    blocks, as the paper shows it.
    """

    layers: dict[str, float]
    attention: list[float]
    maps: Tensor


@torch.no_grad()
def firing_rates(model: nn.Module, x: Tensor) -> FiringRates:
    """Firing rates of a spiking model on images x [B, C, H, W] or [T, B, C, H, W]; `InputError` for an ANN."""
    check_images(x)
    neurons = spiking_neurons(model)
    mixers = {name: block.attn.mix_neuron for name, block in zip(attention_neurons(model), blocks(model), strict=True)}
    totals: dict[str, tuple[float, int]] = {}
    by_token: dict[str, Tensor] = {}

    def see(name: str, spikes: Tensor) -> None:
        fired, size = totals.get(name, (0.0, 0))
        totals[name] = (fired + spikes.sum(dtype=torch.float64).item(), size + spikes.numel())
        if name in mixers:
            by_token[name] = spikes.float().mean((0, -1))  # [T, B, N, D] -> [B, N]

    with evaluating(model), module_by_module(model), watching(neurons, see):
        model(x)
    layers = {name: fired / size for name, (fired, size) in totals.items()}
    maps = torch.stack(list(by_token.values())).mean(0).unflatten(1, token_grid(model, x))
    return FiringRates(layers, [layers[name] for name in mixers], maps)


@torch.no_grad()
def spike_trains(model: nn.Module, x: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Spikes [T, B, ...] of the named neuron layers (default: each block's attention neuron), for raster plots.

    Names are those of `firing_rates(...).layers`; `InputError` for one that does not exist, or for an ANN.
    """
    check_images(x)
    neurons = spiking_neurons(model)
    wanted = attention_neurons(model) if layers is None else list(layers)
    unknown = [name for name in wanted if name not in neurons]
    if unknown:
        raise InputError(f"spike_trains: no neuron layer {unknown[0]!r}: use one of {', '.join(neurons)}")
    trains: dict[str, Tensor] = {}
    with (
        evaluating(model),
        module_by_module(model),
        watching({name: neurons[name] for name in wanted}, trains.__setitem__),
    ):
        model(x)
    return trains


def attention_neurons(model: Any) -> list[str]:
    """Name of each block's attention neuron, the one after w·V."""
    names = {module: name for name, module in model.named_modules()}
    mixers = [getattr(block.attn, "mix_neuron", None) for block in blocks(model)]
    if any(mixer is None for mixer in mixers):
        raise InputError(f"explain: the attention of {type(model).__name__} has no spiking neuron")
    return [names[mixer] for mixer in mixers]
