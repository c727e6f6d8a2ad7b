"""Small models with what engines fold and round: norms that are not trivial, weights that 8 bits hold where asked."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from s2tdpt import create_model

from ..models.cases import SMALL, seasoned


@torch.no_grad()
def small(**options: Any) -> nn.Module:
    """A seasoned model of the small geometry whose norms and biases are all different."""
    torch.manual_seed(0)
    model = create_model("s2tdpt_tiny", **(SMALL | options)).double()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight += 0.2 * torch.randn_like(weight)
    return seasoned(model)


@torch.no_grad()
def in_eight_bits(model: nn.Module) -> nn.Module:
    """A copy whose matrices and kernels, frozen ones too, lie on 255 levels a channel."""
    model = copy.deepcopy(model)
    for weight in (*model.parameters(), *model.buffers()):
        if weight.ndim > 1:
            rows = weight.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).float().double() / 127
            rows.copy_((rows / scale).round() * scale)
    return model
