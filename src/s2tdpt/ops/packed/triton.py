"""Launching the kernels on packed spikes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..stdp.launch import INTERPRETED, width
from . import edge_kernels, kernels
from .neuron import Constants, ptx


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's product, its warps, the tiles on their way, and registers at most.

    `ahead`: the membrane is read before the product.
    """

    bm: int = 64
    bn: int = 64
    bk: int = 64
    warps: int = 4
    stages: int = 4
    registers: int | None = None
    ahead: bool = False

    def options(self) -> dict[str, Any]:
        sizes = {"BM": self.bm, "BN": self.bn, "BK": self.bk, "STAGES": self.stages}
        return {**sizes, "num_warps": self.warps, "maxnreg": self.registers}


def linear_tile(inputs: int, outputs: int, time_steps: int, membrane: torch.dtype | None) -> Tile:
    """By what was fastest on an H200 (see docs/inference.md)."""
    if membrane is None:
        return _narrowed(Tile(registers=_THREE_PROGRAMS), outputs, time_steps)
    ahead = inputs <= 512 and membrane.itemsize * time_steps <= 8  # a long product hides the reading by itself
    tile = Tile(bk=128 if inputs >= 128 else 64, stages=3, ahead=ahead)
    return _narrowed(tile, outputs, time_steps)


def conv_tile(inputs: int, outputs: int, time_steps: int, membrane: torch.dtype | None) -> Tile:
    """Likewise for a convolution; blocks that end where the channels of a place end need the fewest addresses."""
    if inputs % 128 == 0:
        return _narrowed(Tile(bk=128, stages=3), outputs, time_steps)
    if inputs % 64 != 0 and inputs % 32 == 0:
        return _narrowed(Tile(bk=32, stages=5, registers=_THREE_PROGRAMS), outputs, time_steps)
    return _narrowed(Tile(registers=_THREE_PROGRAMS), outputs, time_steps)


_THREE_PROGRAMS = 168
"""Registers with which three programs of four warps share a multiprocessor."""


def _narrowed(tile: Tile, outputs: int, time_steps: int) -> Tile:
    """Narrower where much of the last tile would be empty, more warps where the sums of all steps need them."""
    if outputs % 64 != 0 and outputs <= 256:
        tile = replace(tile, bm=128, bn=32, warps=8, registers=None)
    return replace(tile, warps=8, registers=None) if time_steps > 4 else tile


@dataclass(frozen=True)
class Weight:
    """A layer, scale * (levels . x) + bias: levels int8 [N, K] or [N, 3, 3, C], scale and bias float32 [N]."""

    levels: Tensor
    scale: Tensor
    bias: Tensor


def _neuron(neuron: Constants | None, time_steps: int, device: torch.device) -> dict[str, Any]:
    if neuron is None:
        return {"constants": torch.empty(0, device=device), "FIRE": False, "SOFT": False, "ASM": None}
    soft = neuron.soft is not None
    return {"constants": neuron.on(device), "FIRE": True, "SOFT": soft, "ASM": _asm(time_steps, soft)}


@lru_cache(maxsize=32)
def _asm(time_steps: int, soft: bool) -> str | None:
    return None if INTERPRETED else ptx(time_steps, soft=soft)


def _outputs(like: Tensor, shape: tuple[int, ...], neuron: Constants | None) -> Tensor:
    return like.new_empty(shape if neuron is not None else 0)


def linear(
    x: Tensor, weight: Weight, neuron: Constants | None, time_steps: int, membrane: Tensor | None = None,
    *, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Packed spikes [M, N] of the neuron behind a linear layer, of packed spikes x [M, K].

    With `membrane` [T, M, N] the layer's result is added to it in place, and the neuron fires from the sum.
    """
    M, K = x.shape
    N = len(weight.scale)
    tile = tile or linear_tile(K, N, time_steps, None if membrane is None else membrane.dtype)
    spikes = _outputs(x, (M, N), neuron)
    u = x if membrane is None else membrane
    grid = (triton.cdiv(M, tile.bm) * triton.cdiv(N, tile.bn),)
    kernels.linear_kernel[grid](
        x, weight.levels, weight.scale, weight.bias, u, u, spikes, M, M * N, N=N, K=K, T=time_steps,
        RESIDUAL=membrane is not None, MEMBRANE=membrane is not None, AHEAD=membrane is not None and tile.ahead,
        **_neuron(neuron, time_steps, x.device), **tile.options(),
    )  # fmt: skip
    return spikes


def conv(
    x: Tensor, weight: Weight, neuron: Constants | None, time_steps: int, membrane: Tensor | None = None,
    *, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """Packed spikes [B, H, W, N] of the neuron behind a 3x3 convolution (padding 1) of packed x [B, H, W, C].

    `membrane` [T, B * H * W, N] takes the convolution's result.
    """
    B, H, W, C = x.shape
    N, M = len(weight.scale), B * H * W
    tile = tile or conv_tile(C, N, time_steps, None if membrane is None else membrane.dtype)
    spikes = _outputs(x, (B, H, W, N), neuron)
    grid = (triton.cdiv(M, tile.bm) * triton.cdiv(N, tile.bn),)
    kernels.conv_kernel[grid](
        x, weight.levels, weight.scale, weight.bias, x if membrane is None else membrane, spikes, M, M * N,
        H=H, W=W, N=N, C=C, T=time_steps, MEMBRANE=membrane is not None, **_neuron(neuron, time_steps, x.device),
        **tile.options(),
    )  # fmt: skip
    return spikes


def pixels(
    x: Tensor, weight: Weight, neuron: Constants | None, time_steps: int, membrane: Tensor | None = None
) -> Tensor:
    """Packed spikes [B, H, W, N] of the neuron behind a 3x3 convolution (padding 1) of float32 images.

    x is [B, C, H, W], shown at all steps, or [T, B, C, H, W]; `weight.levels` is float32 [9 * C, N]. `membrane`
    [T, B * H * W, N] takes the convolution's result.
    """
    shared = x.ndim == 4
    x = x.unsqueeze(0) if shared else x
    _, B, C, H, W = x.shape
    N, M = len(weight.scale), B * H * W
    bm, bn = 64, next((width for width in (64, 32) if N % width == 0), 16)
    spikes = torch.empty((B, H, W, N) if neuron is not None else 0, dtype=torch.int8, device=x.device)
    edge_kernels.pixels_kernel[(triton.cdiv(M, bm),)](
        x, weight.levels, weight.scale, weight.bias, x if membrane is None else membrane, spikes, M, M * N,
        stride_t=x.stride(0), stride_b=x.stride(1), stride_c=x.stride(2), stride_h=x.stride(3), stride_w=x.stride(4),
        H=H, W=W, N=N, C=C, T=time_steps, SHARED=shared, MEMBRANE=membrane is not None, BM=bm, BN=bn,
        **_neuron(neuron, time_steps, x.device), BK=min(32, max(16, triton.next_power_of_2(9 * C))),
    )  # fmt: skip
    return spikes


def pool(x: Tensor) -> Tensor:
    """Max-pool (3, stride 2, padding 1) of packed spikes [B, H, W, C]."""
    B, H, W, C = x.shape
    out = x.new_empty(B, (H + 1) // 2, (W + 1) // 2, C)
    words = (torch.int32 if C % 4 == 0 else torch.int8,)
    source, target = x.view(*words), out.view(*words)
    count = target.numel()
    edge_kernels.pool_kernel[(triton.cdiv(count, 512),)](
        source, target, count, C=source.shape[3], H=H, W=W, HP=out.shape[1], WP=out.shape[2], BLOCK=512
    )
    return out


def stdp(
    qkv: Tensor, window: Tensor, scale: float, neuron: Constants, num_heads: int, time_steps: int, tokens: int,
    *, half: bool = True,
) -> Tensor:  # fmt: skip
    """Packed spikes [B * N, D] of the neuron behind STDP attention, of packed qkv [B * N, 3 * D]; N <= 128.

    `half`: weights are rounded to half precision.
    """
    M, D3 = qkv.shape
    features = D3 // (3 * num_heads)
    out = qkv.new_empty(M, D3 // 3)
    word = 4 if features % 4 == 0 else 1
    options = _neuron(neuron, time_steps, qkv.device)
    del options["FIRE"]
    words = qkv.view(torch.int32) if word == 4 else qkv
    edge_kernels.stdp_kernel[(M // tokens * num_heads,)](
        qkv, words, out, window, scale, N=tokens, H=num_heads, D=features, T=time_steps, BN=width(tokens),
        BD=width(features), WORD=word, HALF=half, **options,
    )  # fmt: skip
    return out


def mean(u: Tensor, tokens: int) -> Tensor:
    """Mean over steps and tokens, float32 [B, C], of membranes [T, B * N, C]."""
    T, M, C = u.shape
    out = torch.empty(M // tokens, C, dtype=torch.float32, device=u.device)
    edge_kernels.mean_kernel[(M // tokens, triton.cdiv(C, 128))](
        u, out, tokens, M * C, 1 / (T * tokens), C=C, T=T, BN=32, BC=128
    )
    return out


def head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer of float32 x [M, C] with weight [N, C]: few of both, which a library's kernels are not made for."""
    M, C = x.shape
    N = len(weight)
    out = x.new_empty(M, N)
    edge_kernels.head_kernel[(triton.cdiv(M, 16), triton.cdiv(N, 16))](
        x, weight, bias, out, M, N, C, BM=16, BN=16, BC=64
    )
    return out
