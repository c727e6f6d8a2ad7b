"""STDP attention as registered PyTorch operators over Triton kernels: tiles for short, buckets for long sequences."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..norm_lif.spec import NormLif
from ..norm_lif.triton import unpack
from . import kernels
from .window import StdpWindow

TILE_TOKENS = 128
"""Sequences up to this length take the tile kernel; longer ones are bucketed by spike count."""

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=64)
def window_table(window: StdpWindow, num_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """The window's constants as the kernels read them: float32 [H, 5]; kept, since a CUDA graph cannot copy them."""
    a_plus, a_minus, tau_plus, tau_minus, t_max, offset = window.constants(torch.empty(0, dtype=torch.float64))
    per_count = t_max / head_dim * math.log2(math.e)
    columns = (a_plus, a_minus, per_count / tau_plus, per_count / tau_minus, offset)
    table = torch.cat([c.reshape(-1, 1).expand(num_heads, 1) for c in columns], 1)
    with torch.inference_mode(False):  # kept for later calls, which may train
        return table.to(device=device, dtype=torch.float32).contiguous()


def _width(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def _dot(dtype: torch.dtype) -> dict[str, Any]:
    """How products are taken: in bfloat16 for half-precision spikes, exactly for float32."""
    half = dtype in (torch.bfloat16, torch.float16) and not _INTERPRETED
    return {"DOT": triton.language.bfloat16 if half else triton.language.float32, "PRECISION": "ieee"}


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
    parts: Sequence[Tensor], out: Tensor, window: Tensor, inv_tau: Tensor, scale: float, spec: NormLif
) -> None:
    """Fill out [T, B, H, N, D_h] from q, k, v [T, B, H, N, D_h] of equal strides."""
    q, k, v = parts
    T, B, H, N, D = q.shape
    kernels.tile_forward_kernel[(B * H,)](
        q, k, v, out, window, inv_tau, scale, N, H, *q.stride()[:4], *out.stride()[:4],
        T=T, D=D, BN=_width(N), BD=_width(D), **_dot(q.dtype), **_neuron(spec),
    )  # fmt: skip


def _tile_backward(
    grad: Tensor, parts: Sequence[Tensor], grads: Sequence[Tensor], window: Tensor, inv_tau: Tensor, scale: float,
    spec: NormLif, learn_tau: bool,
) -> Tensor:  # fmt: skip
    """Fill the gradients of q, k, v (equal strides) and return ∂(1/tau) [1]."""
    q, k, v = parts
    T, B, H, N, D = q.shape
    partial_tau = torch.empty(B * H, device=q.device, dtype=torch.float32)
    kernels.tile_backward_kernel[(B * H,)](
        q, k, v, grad, *grads, window, inv_tau, partial_tau, scale, N, H,
        *q.stride()[:4], *grad.stride()[:4], *grads[0].stride()[:4],
        T=T, D=D, BN=_width(N), BD=_width(D), **_dot(q.dtype), DETACH=spec.detach_reset,
        ALPHA=spec.alpha, ATAN=spec.surrogate == "atan", LEARN_TAU=learn_tau, num_warps=8, **_neuron(spec),
    )  # fmt: skip
    return partial_tau.sum().view(1)


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
) -> Tensor:
    """s·w·V through the neuron, of spikes [T, B, N, 3·H·D_h], also as bits (or empty): spikes [T, B, N, H·D_h]."""
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    spec = NormLif.unpack(flags, numbers)
    _tile_forward(_parts(qkv, num_heads), _heads_apart(out, num_heads), window, inv_tau, scale, spec)
    return out


@stdp_lif_op.register_fake
def _(qkv, bits, window, inv_tau, scale, num_heads, flags, numbers):
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@torch.library.custom_op("s2tdpt::stdp_lif_backward", mutates_args=())
def stdp_lif_backward_op(
    grad: Tensor, qkv: Tensor, window: Tensor, inv_tau: Tensor, learn_tau: bool, scale: float, num_heads: int,
    flags: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """∂qkv, packed, and ∂(1/tau) [1]."""
    grad_qkv = torch.empty_like(qkv)
    parts, grads = _parts(qkv, num_heads), _parts(grad_qkv, num_heads)
    spec = NormLif.unpack(flags, numbers)
    grad_tau = _tile_backward(_heads_apart(grad, num_heads), parts, grads, window, inv_tau, scale, spec, learn_tau)
    return grad_qkv, grad_tau


@stdp_lif_backward_op.register_fake
def _(grad, qkv, window, inv_tau, learn_tau, scale, num_heads, flags, numbers):
    return torch.empty_like(qkv), window.new_empty(1)


def _stdp_lif_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bits, window, inv_tau, *ctx.rest = inputs
    ctx.shape, ctx.dtype, ctx.packed = qkv.shape, qkv.dtype, bits.numel() > 0
    ctx.save_for_backward(bits if ctx.packed else qkv, window, inv_tau)


def _stdp_lif_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    kept, window, inv_tau = ctx.saved_tensors
    qkv = unpack(kept, ctx.shape, ctx.dtype) if ctx.packed else kept
    learn_tau = ctx.needs_input_grad[3]
    grad_qkv, grad_tau = stdp_lif_backward_op(grad.contiguous(), qkv, window, inv_tau, learn_tau, *ctx.rest)
    return grad_qkv, None, None, grad_tau.view(inv_tau.shape) if learn_tau else None, None, None, None, None


stdp_lif_op.register_autograd(_stdp_lif_backward, setup_context=_stdp_lif_context)

_SILENT = NormLif(time_steps=1, training=False, fire=False)


@torch.library.custom_op("s2tdpt::stdp_tile", mutates_args=())
def stdp_tile_op(q: Tensor, k: Tensor, v: Tensor, window: Tensor, scale: float) -> Tensor:
    """s·w·V [Z, H, N, D_h] of spikes [Z, H, N, D_h] with equal strides, one tile a head."""
    out = _like_tokens(q)
    _tile_forward([x.unsqueeze(0) for x in (q, k, v)], out.unsqueeze(0), window, window, scale, _SILENT)
    return out


def _like_tokens(x: Tensor) -> Tensor:
    """An empty [Z, H, N, D_h] whose heads merge without a copy."""
    Z, H, N, D = x.shape
    return x.new_empty(Z, N, H, D).transpose(1, 2)


@stdp_tile_op.register_fake
def _(q, k, v, window, scale):
    return _like_tokens(q)


@torch.library.custom_op("s2tdpt::stdp_tile_backward", mutates_args=())
def stdp_tile_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂q, ∂k, ∂v."""
    grads = _like_tokens(q), _like_tokens(q), _like_tokens(q)
    parts, to = [x.unsqueeze(0) for x in (q, k, v)], [x.unsqueeze(0) for x in grads]
    _tile_backward(grad.unsqueeze(0), parts, to, window, window, scale, _SILENT, learn_tau=False)
    return grads


@stdp_tile_backward_op.register_fake
def _(grad, q, k, v, window, scale):
    return _like_tokens(q), _like_tokens(q), _like_tokens(q)


def _tile_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _tile_op_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *stdp_tile_backward_op(_last_dense(grad), *ctx.saved_tensors, ctx.scale), None, None


stdp_tile_op.register_autograd(_tile_op_backward, setup_context=_tile_context)


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V of binary spikes [..., N, D_h] on the GPU: by length, one tile a head or spike-count buckets."""
    lead = query.shape[:-2]
    H = lead[-1] if len(lead) else 1
    q, k, v = (_last_dense(x.reshape(-1, H, *x.shape[-2:])) for x in (query, key, value))
    constants = window_table(window, H, q.shape[-1], q.device)
    if q.shape[2] <= TILE_TOKENS and q.shape == k.shape:
        if not q.stride() == k.stride() == v.stride():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = stdp_tile_op(q, k, v, constants, scale)
    else:
        out, *_ = stdp_buckets_op(q, k, v, constants, scale)
    return out.reshape(*lead, *out.shape[-2:])


def _last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _split(tokens: int, rows: int) -> tuple[int, int]:
    """Programs along the tokens, and tokens each takes."""
    wanted = max(1, (132 * 8) // rows)
    per_program = max(128, triton.cdiv(triton.cdiv(tokens, wanted), 128) * 128)
    return triton.cdiv(tokens, per_program), per_program


def _bucket_sums(spikes: Tensor | None, counts: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    Z, H, N, D = rows.shape
    programs, per_program = _split(N, Z * H)
    BC, BD = _width(D + 1), _width(D)
    sums = torch.empty(Z * H, programs, BC, BD, device=rows.device, dtype=torch.float32)
    keyed = rows if spikes is None else spikes
    kernels.bucket_sum_kernel[(programs, Z * H)](
        keyed, counts, rows, sums, N, per_program, programs, H, *keyed.stride()[:3], *rows.stride()[:3],
        COUNT=spikes is not None, D=D, BN=64, BC=BC, BD=BD, **_dot(rows.dtype),
    )  # fmt: skip
    return sums, programs


def _bucket_table(sums: Tensor, programs: int, window: Tensor, scale: float, mode: int, kept: Tensor | None = None,
                  keep: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, _, BC, BD = sums.shape
    by_count = sums.new_empty(rows, BC, BD)
    store = kept if kept is not None else (sums.new_empty(rows, BC, BD) if keep else by_count)
    kernels.bucket_table_kernel[(rows,)](
        sums, by_count, window, scale, programs, len(window), MODE=mode, BC=BC, BD=BD, KEEP=keep, kept=store,
        FROM_KEPT=kept is not None,
    )  # fmt: skip
    return by_count, store


@torch.library.custom_op("s2tdpt::stdp_buckets", mutates_args=())
def stdp_buckets_op(
    q: Tensor, k: Tensor, v: Tensor, window: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s·w·V [Z, H, N, D_h] of spikes [Z, H, N, D_h] in O(N); also both spike counts and V's sums by count."""
    Z, H, N, D = q.shape
    out, counts_q, counts_k, kept = _bucket_outputs(q, k)
    sums, programs = _bucket_sums(k, counts_k, v)
    by_count, _ = _bucket_table(sums, programs, window, scale, 0)
    kernels.bucket_table_kernel[(Z * H,)](
        sums, kept, window, scale, programs, H, MODE=2, BC=sums.shape[2], BD=sums.shape[3], KEEP=False, kept=kept,
        FROM_KEPT=False,
    )  # fmt: skip
    kernels.bucket_read_kernel[(triton.cdiv(N, 64), Z * H)](
        q, counts_q, by_count, out, N, H, *q.stride()[:3], *out.stride()[:3],
        D=D, BN=64, BC=sums.shape[2], BD=sums.shape[3],
    )  # fmt: skip
    return out, counts_q, counts_k, kept


def _bucket_outputs(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    Z, H, N, D = q.shape
    out = _like_tokens(q)
    counts_q = q.new_empty(Z, H, N, dtype=torch.uint8)
    counts_k = q.new_empty(Z, H, k.shape[2], dtype=torch.uint8)
    return out, counts_q, counts_k, q.new_empty(Z * H, _width(D + 1), _width(D), dtype=torch.float32)


@stdp_buckets_op.register_fake
def _(q, k, v, window, scale):
    return _bucket_outputs(q, k)


@torch.library.custom_op("s2tdpt::stdp_buckets_backward", mutates_args=())
def stdp_buckets_backward_op(
    grad: Tensor, v: Tensor, counts_q: Tensor, counts_k: Tensor, for_q: Tensor, window: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """∂q, ∂k, ∂v, each [Z, H, N, D_h]."""
    Z, H, N, D = grad.shape
    NK = v.shape[2]
    grad_q, grad_k, grad_v = _bucket_gradients(grad, v)
    sums, programs = _bucket_sums(None, counts_q, grad)
    for_v, kept = _bucket_table(sums, programs, window, scale, 1, keep=True)
    for_k, _ = _bucket_table(sums, programs, window, scale, 3, kept=kept)
    kernels.bucket_backward_kernel[(triton.cdiv(max(N, NK), 64), Z * H)](
        v, grad, counts_q, counts_k, for_v, for_q, for_k, grad_q, grad_k, grad_v, N, NK, H,
        *v.stride()[:3], *grad.stride()[:3], *grad_q.stride()[:3], *grad_k.stride()[:3],
        D=D, BN=64, BC=sums.shape[2], BD=sums.shape[3],
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _bucket_gradients(grad: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like_tokens(grad), _like_tokens(v), _like_tokens(v)


@stdp_buckets_backward_op.register_fake
def _(grad, v, counts_q, counts_k, for_q, window, scale):
    return _bucket_gradients(grad, v)


def _buckets_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, v, window, ctx.scale = inputs
    _, counts_q, counts_k, for_q = output
    ctx.mark_non_differentiable(counts_q, counts_k, for_q)
    ctx.save_for_backward(v, counts_q, counts_k, for_q, window)


def _buckets_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad = _last_dense(grad)
    v, counts_q, counts_k, for_q, window = ctx.saved_tensors
    return *stdp_buckets_backward_op(grad, v, counts_q, counts_k, for_q, window, ctx.scale), None, None


stdp_buckets_op.register_autograd(_buckets_backward, setup_context=_buckets_context)
