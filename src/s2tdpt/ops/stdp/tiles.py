"""STDP attention of short sequences as registered PyTorch operators, alone and together with the neuron after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..norm_lif.spec import NormLif
from . import tile_kernels as kernels
from .launch import BLOCK, dot, last_dense, like_tokens, width


def _neuron(spec: NormLif) -> dict[str, Any]:
    return {
        "FIRE": spec.fire,
        "THRESHOLD": spec.v_threshold,
        "REST": spec.v_reset or 0.0,
        "SOFT": spec.v_reset is None,
        "DECAY_INPUT": spec.decay_input,
    }


def _parts(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views [T, B, H, N, D_h] of packed spikes [T, B, N, 3·H·D_h]."""
    T, B, N, _ = qkv.shape
    q, k, v = qkv.view(T, B, N, 3, num_heads, -1).permute(3, 0, 1, 4, 2, 5).unbind(0)
    return q, k, v


def _heads_apart(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(2, 3)


def _tile_forward(
    parts: Sequence[Tensor], out: Tensor, current: Tensor, counts: Tensor, window: Tensor, inv_tau: Tensor,
    scale: float, spec: NormLif,
) -> None:  # fmt: skip
    """Fill out and current [T, B, H, N, D_h] and counts [2, T, B, H, N] from q, k, v of equal strides."""
    q, k, v = parts
    T, B, H, N, D = q.shape
    kernels.tile_forward_kernel[(B * H,)](
        q, k, v, out, current, counts, window, inv_tau, scale, N, H, B * H, *q.stride()[:4], *out.stride()[:4],
        T=T, D=D, BN=width(N), BD=width(D), **dot(q.dtype), **_neuron(spec),
    )  # fmt: skip


def _tile_backward(
    grad: Tensor, counts: Tensor, v: Tensor, bits: Tensor | None, v_start: int, grads: Sequence[Tensor],
    window: Tensor, scale: float,
) -> None:  # fmt: skip
    """Fill the gradients of q, k, v [T, B, H, N, D_h]; with `bits`, v only tells where V lies in them."""
    T, B, H, N, D = v.shape
    kernels.tile_backward_kernel[(T * B * H,)](
        counts, v if bits is None else bits, grad, *grads, window, scale, N, H, B * H, T, v_start,
        *v.stride()[:4], *grad.stride()[:4], *grads[0].stride()[:4],
        D=D, BN=width(N), BD=width(D), **dot(grad.dtype), BITS=bits is not None,
    )  # fmt: skip


def _new_counts(q: Tensor) -> Tensor:
    return q.new_empty((2, *q.shape[:-1]), dtype=torch.uint8)


@torch.library.custom_op("s2tdpt::stdp_lif", mutates_args=())
def stdp_lif_op(
    qkv: Tensor,
    bits: Tensor,
    window: Tensor,
    inv_tau: Tensor,
    scale: float,
    num_heads: int,
    flags: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """s·w·V through the neuron, of spikes [T, B, N, 3·H·D_h], also as bits (or empty).

    Returns spikes and the neuron's current [T, B, N, H·D_h], and the spike counts [2, T, B, H, N] of queries and keys.
    """
    spikes, current, counts = _stdp_lif_outputs(qkv, num_heads)
    spec = NormLif.unpack(flags, numbers)
    out, drive = (_heads_apart(x, num_heads) for x in (spikes, current))
    _tile_forward(_parts(qkv, num_heads), out, drive, counts, window, inv_tau, scale, spec)
    return spikes, current, counts


def _stdp_lif_outputs(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    T, B, N, D3 = qkv.shape
    spikes, current = (qkv.new_empty(T, B, N, D3 // 3) for _ in range(2))
    return spikes, current, qkv.new_empty((2, T, B, num_heads, N), dtype=torch.uint8)


@stdp_lif_op.register_fake
def _(qkv, bits, window, inv_tau, scale, num_heads, flags, numbers):
    return _stdp_lif_outputs(qkv, num_heads)


@torch.library.custom_op("s2tdpt::stdp_lif_backward", mutates_args=())
def stdp_lif_backward_op(
    grad: Tensor, current: Tensor, counts: Tensor, qkv: Tensor, packed: bool, window: Tensor, inv_tau: Tensor,
    learn_tau: bool, scale: float, num_heads: int, flags: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """∂qkv [T, B, N, 3·H·D_h] and ∂(1/tau) [1]; qkv are the spikes, or their bits if `packed`."""
    spec = NormLif.unpack(flags, numbers)
    T, _, _, D = grad.shape
    n = grad.numel() // T
    grad_current = torch.empty_like(grad)
    blocks = triton.cdiv(n, BLOCK)
    partial_tau = torch.empty(blocks if learn_tau else 1, device=grad.device, dtype=torch.float32)
    kernels.neuron_backward_kernel[(blocks,)](
        current, grad, grad_current, inv_tau, partial_tau, n, T=T, DETACH=spec.detach_reset, ALPHA=spec.alpha,
        ATAN=spec.surrogate == "atan", LEARN_TAU=learn_tau, BLOCK=BLOCK,
        **{k: v for k, v in _neuron(spec).items() if k != "FIRE"},
    )  # fmt: skip
    grad_qkv = grad.new_empty(*grad.shape[:3], 3 * D)
    grads = _parts(grad_qkv, num_heads)
    value, bits = (grads[2], qkv) if packed else (_parts(qkv, num_heads)[2], None)
    _tile_backward(_heads_apart(grad_current, num_heads), counts, value, bits, 2 * D, grads, window, scale)
    return grad_qkv, partial_tau.sum().view(1)


@stdp_lif_backward_op.register_fake
def _(grad, current, counts, qkv, packed, window, inv_tau, learn_tau, scale, num_heads, flags, numbers):
    return grad.new_empty(*grad.shape[:3], 3 * grad.shape[3]), window.new_empty(1)


def _stdp_lif_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, bits, window, inv_tau, *ctx.rest = inputs
    _, current, counts = output
    ctx.packed = bits.numel() > 0
    ctx.mark_non_differentiable(current, counts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(current, counts, bits if ctx.packed else qkv, window, inv_tau)


def _stdp_lif_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    current, counts, kept, window, inv_tau = ctx.saved_tensors
    learn_tau = ctx.needs_input_grad[3]
    grad_qkv, grad_tau = stdp_lif_backward_op(
        grad.contiguous(), current, counts, kept, ctx.packed, window, inv_tau, learn_tau, *ctx.rest
    )
    return grad_qkv, None, None, grad_tau.view(inv_tau.shape) if learn_tau else None, None, None, None, None


stdp_lif_op.register_autograd(_stdp_lif_backward, setup_context=_stdp_lif_context)

_SILENT = NormLif(time_steps=1, training=False, fire=False)


@torch.library.custom_op("s2tdpt::stdp_tile", mutates_args=())
def stdp_tile_op(q: Tensor, k: Tensor, v: Tensor, window: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """s·w·V [Z, H, N, D_h] of spikes [Z, H, N, D_h] with equal strides, one tile a head; and the spike counts."""
    out, counts = like_tokens(q), _new_counts(q)
    step = out.unsqueeze(0)
    _tile_forward([x.unsqueeze(0) for x in (q, k, v)], step, step, counts, window, window, scale, _SILENT)
    return out, counts


@stdp_tile_op.register_fake
def _(q, k, v, window, scale):
    return like_tokens(q), _new_counts(q)


@torch.library.custom_op("s2tdpt::stdp_tile_backward", mutates_args=())
def stdp_tile_backward_op(
    grad: Tensor, counts: Tensor, v: Tensor, window: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂q, ∂k, ∂v."""
    grads = like_tokens(v), like_tokens(v), like_tokens(v)
    to = [x.unsqueeze(0) for x in grads]
    _tile_backward(grad.unsqueeze(0), counts, v.unsqueeze(0), None, 0, to, window, scale)
    return grads


@stdp_tile_backward_op.register_fake
def _(grad, counts, v, window, scale):
    return like_tokens(v), like_tokens(v), like_tokens(v)


def _tile_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, v, window, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], v, window)


def _tile_op_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *stdp_tile_backward_op(last_dense(grad), *ctx.saved_tensors, ctx.scale), None, None


stdp_tile_op.register_autograd(_tile_op_backward, setup_context=_tile_context)
