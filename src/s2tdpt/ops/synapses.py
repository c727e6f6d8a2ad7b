"""Linear and convolution layers of the fused forward pass, which keep their input spikes for backward as bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .depthwise.triton import depthwise, depthwise_weight
from .norm_lif.triton import unpack


class LinearBeforeNorm(torch.autograd.Function):
    """spikes [..., D] @ weightᵀ in the spikes' dtype, going straight into batch normalisation.

    No bias is added. A batch's own mean (`batch_mean`) removes it, so its gradient is 0; from a running mean the caller
    subtracts it. `bits` are the packed spikes, or empty.
    """

    @staticmethod
    def forward(
        ctx: Any, spikes: Tensor, bits: Tensor, weight: Tensor, bias: Tensor | None, batch_mean: bool
    ) -> Tensor:
        ctx.batch_mean = batch_mean
        ctx.weight_dtype, ctx.bias = weight.dtype, None if bias is None else (bias.shape, bias.dtype)
        weight = weight.to(spikes.dtype)
        _keep(ctx, spikes, bits, weight)
        return spikes @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        spikes, weight = _kept(ctx)
        (grad,) = grads
        grad_weight = grad.flatten(0, -2).t() @ spikes.flatten(0, -2)
        grad_bias = None
        if ctx.bias is not None:
            shape, dtype = ctx.bias
            grad_bias = grad.new_zeros(shape, dtype=dtype) if ctx.batch_mean else grad.flatten(0, -2).sum(0).to(dtype)
        return grad @ weight, None, grad_weight.to(ctx.weight_dtype), grad_bias, None


class ConvBeforeNorm(torch.autograd.Function):
    """Convolution without bias of spikes [B, H, W, C], channels last in memory: [B, H', W', C']."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, bits: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.weight_dtype, ctx.stride, ctx.padding = weight.dtype, stride, padding
        weight = weight.to(spikes.dtype, memory_format=torch.channels_last)
        _keep(ctx, spikes, bits, weight)
        return F.conv2d(spikes.permute(0, 3, 1, 2), weight, stride=stride, padding=padding).permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        spikes, weight = _kept(ctx)
        grad, x = (t.permute(0, 3, 1, 2) for t in (grads[0], spikes))
        mask = [ctx.needs_input_grad[0], True, False]
        geometry = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, mask)
        grad_spikes = None if grad_x is None else grad_x.permute(0, 2, 3, 1)
        return grad_spikes, None, grad_weight.to(ctx.weight_dtype), None, None


class DepthwiseBeforeNorm(torch.autograd.Function):
    """Depth-wise 3x3 convolution (padding 1, no bias) of spikes [B, H, W, C]: the same shape."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor, bits: Tensor, weight: Tensor) -> Tensor:
        weight = weight.contiguous()
        _keep(ctx, spikes, bits, weight)
        return depthwise(spikes, weight, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_weight = depthwise_weight(grad, kept, ctx.packed)
        return depthwise(grad, weight, True), None, grad_weight.to(weight.dtype)


def _keep(ctx: Any, spikes: Tensor, bits: Tensor, weight: Tensor) -> None:
    ctx.shape, ctx.dtype, ctx.packed = spikes.shape, spikes.dtype, bits.numel() > 0
    ctx.save_for_backward(bits if ctx.packed else spikes, weight)


def _kept(ctx: Any) -> tuple[Tensor, Tensor]:
    kept, weight = ctx.saved_tensors
    return (unpack(kept, ctx.shape, ctx.dtype) if ctx.packed else kept), weight
