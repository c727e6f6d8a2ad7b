"""What a spike costs, as a constant added to its gradient: the gradient of a penalty that is linear in the spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .reference import add_constant

ATTRIBUTE = "spike_cost"
"""Attribute of a layer: the penalty if every one of its input spikes were there, a plain float."""


class _Charge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, cost: float, fused: bool) -> Tensor:
        ctx.cost, ctx.fused = cost, fused
        return spikes.view_as(spikes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.fused:
            from .triton import add_constant_op  # Triton is there wherever the fused forward pass runs

            return add_constant_op(grads[0], ctx.cost), None, None
        return add_constant(grads[0], ctx.cost), None, None


def charge(spikes: Tensor, layer: nn.Module, *, fused: bool = False) -> Tensor:
    """The input spikes of `layer`, unchanged; backward adds `layer.spike_cost` / numel, if there is such a cost."""
    cost = getattr(layer, ATTRIBUTE, 0.0)
    if not (cost and torch.is_grad_enabled() and spikes.requires_grad):
        return spikes
    return _Charge.apply(spikes, cost / spikes.numel(), fused)  # pyright: ignore[reportReturnType]


class ChargeInput:
    """`charge` as a forward pre-hook, for a model that runs layer by layer; the fused forward pass does it itself."""

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return charge(inputs[0], layer), *inputs[1:]
