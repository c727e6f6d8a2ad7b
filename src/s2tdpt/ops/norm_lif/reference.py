"""Batch normalisation (+ residual) + LIF (+ max-pool) in plain PyTorch: what the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lif import reference as lif_reference
from .spec import NormLif


def norm_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    inv_tau: Tensor,
    residual: Tensor | None,
    spec: NormLif,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes, membrane current, mean and variance; see `s2tdpt.ops.norm_lif.norm_lif`."""
    wide = torch.promote_types(y.dtype, torch.float32)
    rows = y.to(wide).flatten(0, 1)
    if spec.training:
        mean, var = rows.mean(0), rows.var(0, unbiased=False)
    x = (rows - mean) * (weight / torch.sqrt(var + spec.eps)) + bias
    x = x.view(y.shape).expand(spec.time_steps, -1, -1)
    if residual is not None:
        x = x + residual.to(wide)
    if spec.membrane:
        x = x.to(y.dtype).to(wide)
    spikes = y.new_empty(0)
    if spec.fire:
        start = torch.full_like(x[0], 0.0 if spec.v_reset is None else spec.v_reset)
        names = ("v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha")
        neuron = {"tau": 1 / inv_tau} | {name: getattr(spec, name) for name in names}
        fired, _ = lif_reference.lif(x, start, **neuron)
        spikes = fired.to(y.dtype)
        if spec.pool is not None:
            charged = lif_reference.charges(x, start, **neuron) if spec.largest else None
            spikes = max_pool(spikes, *spec.pool, charged)
    return spikes, (x.to(y.dtype) if spec.membrane else y.new_empty(0)), mean.detach(), var.detach()


def max_pool(spikes: Tensor, height: int, width: int, charged: Tensor | None = None) -> Tensor:
    """Max-pool (3, stride 2, padding 1) of spikes [T, B·H·W, C] on the grid height x width: [T, B·H'·W', C].

    The gradient goes to the first of the largest spikes, or to the largest of what the membranes were `charged` to.
    """
    T, _, C = spikes.shape
    images = spikes.reshape(-1, height, width, C).permute(0, 3, 1, 2)
    if charged is None:
        pooled = F.max_pool2d(images, 3, stride=2, padding=1)
    else:
        pooled = pool_by(images, charged.reshape(-1, height, width, C).permute(0, 3, 1, 2))
    return pooled.permute(0, 2, 3, 1).reshape(T, -1, C)


def pool_by(spikes: Tensor, charged: Tensor) -> Tensor:
    """Max-pool (3, stride 2, padding 1) of spikes [B, C, H, W], its gradient to the largest charge of each window.

    That neuron has fired if any has, so the maximum is its spike; of silent ones it is the nearest to its threshold.
    """
    index = F.max_pool2d(charged, 3, stride=2, padding=1, return_indices=True)[1]
    pooled = spikes.flatten(2).gather(2, index.flatten(2)).view_as(index)
    return pooled.contiguous(memory_format=torch.channels_last)  # as the plain maximum's is
