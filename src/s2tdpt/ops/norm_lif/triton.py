"""The fused operator as registered PyTorch operators over the Triton kernels, for `torch.compile` and CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ...errors import InputError
from . import backward_kernels, forward_kernels, kernels
from .spec import NormLif

_BLOCK = 1024
_BACKWARD_TILE = 512  # all steps of a membrane are in registers
_POOL_BACKWARD_TILE = 1024
_BACKWARD_STAGES = 3  # the next tiles are fetched while one is worked on
_POOL_BLOCK = 512
_PROGRAMS = 132 * 8  # enough programs for every multiprocessor of a large GPU to hold several


def _pooled(size: int) -> int:
    return (size - 1) // 2 + 1


def _tile(channels: int, elements: int = _BLOCK) -> tuple[int, int]:
    """Rows and channels of a tile of that many elements, whose width divides the channels where it can."""
    width = next((w for w in (128, 64, 32, 16) if channels % w == 0), 16)
    return elements // width, width


def _split(rows: int, channels: int, tile_rows: int, tile_channels: int) -> tuple[int, int]:
    """How many programs share the rows, and how many rows each takes (a multiple of the tile's)."""
    wanted = max(1, _PROGRAMS // triton.cdiv(channels, tile_channels))
    per_program = triton.cdiv(triton.cdiv(rows, wanted), tile_rows) * tile_rows
    return triton.cdiv(rows, per_program), per_program


def _constants(spec: NormLif) -> dict[str, Any]:
    return {
        "THRESHOLD": spec.v_threshold,
        "REST": spec.v_reset or 0.0,
        "SOFT": spec.v_reset is None,
        "DECAY_INPUT": spec.decay_input,
    }


def batch_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C], float32, of the rows of y [..., C]."""
    C = y.shape[-1]
    rows = y.numel() // C
    BM, BC = _tile(C)
    programs, per_program = _split(rows, C, BM, BC)
    partial = torch.empty(programs, 2, C, device=y.device, dtype=torch.float32)
    mean, var = (torch.empty(C, device=y.device, dtype=torch.float32) for _ in range(2))
    kernels.stats_kernel[(triton.cdiv(C, BC), programs)](y, partial, rows, per_program, C=C, BM=BM, BC=BC)
    kernels.stats_finish_kernel[(triton.cdiv(C, 16),)](y, partial, mean, var, rows, programs, C=C, BP=64, BC=16)
    return mean, var


@torch.library.custom_op("s2tdpt::norm_lif", mutates_args=())
def norm_lif_op(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    inv_tau: Tensor,
    residual: Tensor | None,
    flags: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Spikes, membrane current, pooling index, batch mean and variance, spike bits; what is not asked for is empty."""
    spec = NormLif.unpack(flags, numbers)
    T, M, C = spec.time_steps, y.shape[1], y.shape[2]
    spikes, membrane, index, mean, var, bits = _empty_outputs(y, spec)
    if spec.training:
        mean, var = batch_statistics(y)
        stats = (mean, var)
    else:
        stats = (running_mean, running_var)
    shared = y.shape[0] < T
    common = {"C": C, "T": T, "SHARED": shared, "EPS": spec.eps, "PACK": spec.bits, **_constants(spec)}
    if spec.pool is not None:
        H, W = spec.pool
        n = spikes.numel() // T
        forward_kernels.forward_pool_kernel[(triton.cdiv(n, _POOL_BLOCK),)](
            y, weight, bias, *stats, inv_tau, spikes, index, bits, n, M * C,
            H=H, W=W, HP=_pooled(H), WP=_pooled(W), LARGEST=spec.largest,
            BLOCK=_POOL_BLOCK, **common,
        )  # fmt: skip
    else:
        forward_kernels.forward_kernel[(triton.cdiv(M * C, _BLOCK),)](
            y, weight, bias, *stats, inv_tau, y if residual is None else residual, spikes, membrane, bits, M * C,
            RESIDUAL=residual is not None, MEMBRANE=spec.membrane, FIRE=spec.fire,
            BLOCK=_BLOCK, **common,
        )  # fmt: skip
    return spikes, membrane, index, mean, var, bits


def _empty_outputs(y: Tensor, spec: NormLif) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, M, C = spec.time_steps, y.shape[1], y.shape[2]
    rows = M
    if spec.pool is not None:
        H, W = spec.pool
        rows = M // (H * W) * _pooled(H) * _pooled(W)
    spikes = y.new_empty((T, rows, C) if spec.fire else 0)
    membrane = y.new_empty((T, M, C) if spec.membrane else 0)
    index = y.new_empty((T, rows, C) if spec.pool is not None else 0, dtype=torch.uint8)
    mean, var = (y.new_empty(C if spec.training else 0, dtype=torch.float32) for _ in range(2))
    bits = y.new_empty((T, rows * C // 8) if spec.bits else 0, dtype=torch.uint8)
    return spikes, membrane, index, mean, var, bits


@norm_lif_op.register_fake
def _(y, weight, bias, running_mean, running_var, inv_tau, residual, flags, numbers):
    return _empty_outputs(y, NormLif.unpack(flags, numbers))


@torch.library.custom_op("s2tdpt::norm_lif_backward", mutates_args=())
def norm_lif_backward_op(
    grad_spikes: Tensor,
    grad_membrane: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    inv_tau: Tensor,
    membrane: Tensor,
    index: Tensor,
    learn_tau: bool,
    flags: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """∂y, ∂residual (empty without a membrane output) and the sums [3, C]: ∂bias, ∂weight, ∂(1/tau) by channel."""
    spec = NormLif.unpack(flags, numbers)
    T, M, C = spec.time_steps, y.shape[1], y.shape[2]
    shared = y.shape[0] < T
    grad_y, grad_x, sums = _empty_gradients(y, spec)
    pooled = spec.pool is not None
    BM, BC = _tile(C, _POOL_BACKWARD_TILE if pooled else _BACKWARD_TILE)
    programs, per_program = _split(M, C, BM, BC)
    partial = torch.empty(programs, 3, C, device=y.device, dtype=torch.float32)
    factors = torch.empty_like(sums)
    H, W = spec.pool or (1, 1)
    options = {
        "C": C, "H": H, "W": W, "HP": _pooled(H), "WP": _pooled(W), "T": T, "SHARED": shared, "EPS": spec.eps,
        "MEMBRANE": spec.membrane, "FIRE": spec.fire, "POOL": pooled, "DETACH": spec.detach_reset,
        "ALPHA": spec.alpha, "ATAN": spec.surrogate == "atan", "GRAD_TAU": learn_tau, "BM": BM, "BC": BC,
        "STAGES": _BACKWARD_STAGES, **_constants(spec),
    }  # fmt: skip

    def through_neuron(dx: Tensor, *, store: bool, apply: bool) -> None:
        backward_kernels.backward_kernel[(triton.cdiv(C, BC), programs)](
            y, weight, bias, mean, var, inv_tau, membrane, index, grad_spikes, grad_membrane, factors, partial, dx,
            M, per_program, grad_spikes.numel() // T, STORE=store, APPLY=apply, **options,
        )  # fmt: skip

    again = not (spec.membrane or pooled or shared)  # to integrate twice is cheaper than to store dx and read it again
    dx = grad_x if spec.membrane else grad_y
    through_neuron(dx, store=not again, apply=False)
    backward_kernels.backward_sum_kernel[(triton.cdiv(C, 16),)](
        partial, weight, mean, var, sums, factors, programs, float(y.shape[0] * M),
        C=C, EPS=spec.eps, TRAINING=spec.training, BP=64, BC=16,
    )  # fmt: skip
    if again:
        through_neuron(grad_y, store=True, apply=True)
    else:
        summed = shared and spec.membrane
        backward_kernels.backward_norm_kernel[(triton.cdiv(M * C, _BLOCK),)](
            y, dx, factors, grad_y, M * C,
            C=C, T=T if summed else y.shape[0], SHARED=summed, TRAINING=spec.training, BLOCK=_BLOCK,
        )  # fmt: skip
    return grad_y, grad_x, sums


def _empty_gradients(y: Tensor, spec: NormLif) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = y.new_empty((spec.time_steps, *y.shape[1:]) if spec.membrane else 0)
    return torch.empty_like(y), grad_x, y.new_empty(3, y.shape[2], dtype=torch.float32)


@norm_lif_backward_op.register_fake
def _(grad_spikes, grad_membrane, y, weight, bias, mean, var, inv_tau, membrane, index, learn_tau, flags, numbers):
    return _empty_gradients(y, NormLif.unpack(flags, numbers))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, weight, bias, running_mean, running_var, inv_tau, residual, flags, numbers = inputs
    spikes, membrane, index, mean, var, bits = output
    spec = NormLif.unpack(flags, numbers)
    stats = (mean, var) if spec.training else (running_mean, running_var)
    ctx.mark_non_differentiable(index, mean, var, bits)
    ctx.set_materialize_grads(False)  # no kernel fills zeros that nothing reads
    ctx.save_for_backward(y, weight, bias, *stats, inv_tau, membrane, index)
    ctx.flags, ctx.numbers, ctx.has_residual = flags, numbers, residual is not None
    ctx.spikes_shape = spikes.shape


def _backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    y, weight, bias, mean, var, inv_tau, membrane, index = ctx.saved_tensors
    if grad_spikes is None:
        grad_spikes = y.new_zeros(ctx.spikes_shape)
    if grad_membrane is None:
        grad_membrane = torch.zeros_like(membrane)
    learn_tau = ctx.needs_input_grad[5]
    grad_y, grad_x, sums = norm_lif_backward_op(
        grad_spikes.contiguous(), grad_membrane.contiguous(), y, weight, bias, mean, var, inv_tau, membrane, index,
        learn_tau, ctx.flags, ctx.numbers,
    )  # fmt: skip
    grad_tau = sums[2].sum().view(inv_tau.shape) if learn_tau else None
    grad_residual = grad_x if ctx.has_residual else None
    return grad_y, sums[1], sums[0], None, None, grad_tau, grad_residual, None, None


norm_lif_op.register_autograd(_backward, setup_context=_setup_context)


def norm_lif(
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    inv_tau: Tensor,
    residual: Tensor | None,
    spec: NormLif,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.norm_lif`, by the fused kernels; last, the spikes as bits, eight a byte, if the spec says so."""
    if (residual is not None and not spec.membrane) or (spec.pool is not None and (spec.membrane or not spec.fire)):
        raise InputError("norm_lif: a residual needs the membrane among the outputs, and pooling takes spikes alone")
    flags, numbers = spec.pack()
    residual = None if residual is None else residual.contiguous()
    outputs = norm_lif_op(y.contiguous(), weight, bias, mean, var, inv_tau, residual, flags, numbers)
    spikes, membrane, _, new_mean, new_var, bits = outputs
    return spikes, membrane, *((new_mean, new_var) if spec.training else (mean, var)), bits


@torch.library.custom_op("s2tdpt::unpack", mutates_args=())
def unpack(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The spikes, of that shape, that `norm_lif` packed."""
    out = torch.empty(shape, device=bits.device, dtype=dtype)
    n = out.numel()
    forward_kernels.unpack_kernel[(triton.cdiv(n, 4 * _BLOCK),)](bits, out, n, BLOCK=4 * _BLOCK)
    return out


@unpack.register_fake
def _(bits, shape, dtype):
    return torch.empty(shape, device=bits.device, dtype=dtype)
