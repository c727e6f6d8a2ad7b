"""Batch normalisation folded into the convolution or linear layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


@torch.no_grad()
def fold(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight [out, ...] and bias [out] of norm(weight · x + bias) with its running statistics, in float64."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - factor * norm.running_mean.double()
    if bias is not None:
        shift = shift + factor * bias.double()
    return weight.double() * factor.view(-1, *(1,) * (weight.ndim - 1)), shift
