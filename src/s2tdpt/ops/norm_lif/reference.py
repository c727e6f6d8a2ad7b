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
        fired, _ = lif_reference.lif(
            x,
            start,
            tau=1 / inv_tau,
            v_threshold=spec.v_threshold,
            v_reset=spec.v_reset,
            decay_input=spec.decay_input,
            detach_reset=spec.detach_reset,
            surrogate=spec.surrogate,
            alpha=spec.alpha,
        )
        spikes = fired.to(y.dtype)
        if spec.pool is not None:
            spikes = max_pool(spikes, *spec.pool)
    return spikes, (x.to(y.dtype) if spec.membrane else y.new_empty(0)), mean.detach(), var.detach()


def max_pool(spikes: Tensor, height: int, width: int) -> Tensor:
    """Max-pool (3, stride 2, padding 1) of spikes [T, B·H·W, C] on the grid height x width: [T, B·H'·W', C]."""
    T, _, C = spikes.shape
    images = spikes.reshape(-1, height, width, C).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(images, 3, stride=2, padding=1)
    return pooled.permute(0, 2, 3, 1).reshape(T, -1, C)
