"""STDP attention of long sequences as registered PyTorch operators: sums by spike count, O(N) time and memory."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import bucket_kernels as kernels
from .launch import dot, last_dense, like_tokens, width


def _split(tokens: int, rows: int) -> tuple[int, int]:
    """Programs along the tokens, and tokens each takes."""
    wanted = max(1, (132 * 8) // rows)
    per_program = max(128, triton.cdiv(triton.cdiv(tokens, wanted), 128) * 128)
    return triton.cdiv(tokens, per_program), per_program


def _summed(BC: int, BD: int) -> int:
    """Terms that an exact float32 product [BC, BD] sums at once: the compiler unrolls them all, and must stay quick."""
    return max(16, 2**18 // (BC * BD))


def _bucket_sums(spikes: Tensor | None, counts: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    Z, H, N, D = rows.shape
    programs, per_program = _split(N, Z * H)
    BC, BD = width(D + 1), width(D)
    sums = torch.empty(Z * H, programs, BC, BD, device=rows.device, dtype=torch.float32)
    keyed = rows if spikes is None else spikes
    options = dot(rows.dtype)
    BN = min(64, _summed(BC, BD)) if options["DOT"] == triton.language.float32 else 64
    kernels.bucket_sum_kernel[(programs, Z * H)](
        keyed, counts, rows, sums, N, per_program, programs, H, *keyed.stride()[:3], *rows.stride()[:3],
        COUNT=spikes is not None, D=D, BN=BN, BC=BC, BD=BD, **options,
    )  # fmt: skip
    return sums, programs


def _bucket_table(sums: Tensor, programs: int, window: Tensor, scale: float, mode: int, kept: Tensor | None = None,
                  keep: bool = False, out: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, _, BC, BD = sums.shape
    by_count = sums.new_empty(rows, BC, BD) if out is None else out
    store = kept if kept is not None else (sums.new_empty(rows, BC, BD) if keep else by_count)
    kernels.bucket_table_kernel[(rows,)](
        sums, by_count, window, scale, programs, len(window), MODE=mode, BC=BC, BD=BD, BK=min(BC, _summed(BC, BD)),
        KEEP=keep, kept=store, FROM_KEPT=kept is not None, num_warps=8 if BC * BD > 2**13 else 4,
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
    _bucket_table(sums, programs, window, scale, 2, out=kept)
    kernels.bucket_read_kernel[(triton.cdiv(N, 64), Z * H)](
        q, counts_q, by_count, out, N, H, *q.stride()[:3], *out.stride()[:3],
        D=D, BN=64, BC=sums.shape[2], BD=sums.shape[3],
    )  # fmt: skip
    return out, counts_q, counts_k, kept


def _bucket_outputs(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    Z, H, N, D = q.shape
    out = like_tokens(q)
    counts_q = q.new_empty(Z, H, N, dtype=torch.uint8)
    counts_k = q.new_empty(Z, H, k.shape[2], dtype=torch.uint8)
    return out, counts_q, counts_k, q.new_empty(Z * H, width(D + 1), width(D), dtype=torch.float32)


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
    return like_tokens(grad), like_tokens(v), like_tokens(v)


@stdp_buckets_backward_op.register_fake
def _(grad, v, counts_q, counts_k, for_q, window, scale):
    return _bucket_gradients(grad, v)


def _buckets_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, v, window, ctx.scale = inputs
    _, counts_q, counts_k, for_q = output
    ctx.mark_non_differentiable(counts_q, counts_k, for_q)
    ctx.save_for_backward(v, counts_q, counts_k, for_q, window)


def _buckets_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad = last_dense(grad)
    v, counts_q, counts_k, for_q, window = ctx.saved_tensors
    return *stdp_buckets_backward_op(grad, v, counts_q, counts_k, for_q, window, ctx.scale), None, None


stdp_buckets_op.register_autograd(_buckets_backward, setup_context=_buckets_context)
