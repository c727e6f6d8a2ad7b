"""A program: compiles the kernels, as launched on the CPU's tensors, for a GPU that need not be there.

The interpreter knows neither the compiler's types nor a multiprocessor's memory. Prints one line a kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from s2tdpt.ops import StdpWindow
from s2tdpt.ops.charge.triton import add_constant_op
from s2tdpt.ops.depthwise.triton import depthwise, depthwise_weight
from s2tdpt.ops.norm_lif import NormLif
from s2tdpt.ops.norm_lif.triton import norm_lif, unpack
from s2tdpt.ops.packed import Constants
from s2tdpt.ops.packed import triton as ops
from s2tdpt.ops.packed.triton import Weight
from s2tdpt.ops.stdp import triton as stdp
from s2tdpt.ops.stdp.launch import window_table
from s2tdpt.ops.stdp.tiles import stdp_lif_op

SHARED_MEMORY = 227 * 1024  # of a multiprocessor of compute capability 9.0
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Gpu:
    """What Triton asks a GPU before it compiles for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def norm(
    spec: NormLif, rows: int, channels: int, dtype: torch.dtype = FP32, *, shared: bool = False, residual: bool = False
) -> Callable[[], None]:
    """The kernels of one norm with its neuron, forward and backward."""

    def launch() -> None:
        y = torch.zeros(1 if shared else spec.time_steps, rows, channels, dtype=dtype, requires_grad=True)
        affine = [torch.zeros(channels) for _ in range(4)]
        membrane = torch.zeros(spec.time_steps, rows, channels, dtype=dtype) if residual else None
        spikes, u, _, _, bits = norm_lif(y, *affine, torch.tensor(0.5, requires_grad=True), membrane, spec)
        sum(x.sum() for x in (spikes, u) if x.numel()).backward()  # type: ignore[union-attr]
        if spec.bits:
            unpack(bits, spikes.shape, dtype)

    return launch


def attention(queries: int, keys: int, features: int, dtype: torch.dtype) -> Callable[[], None]:
    def launch() -> None:
        q, k, v = (torch.zeros(1, 1, n, features, dtype=dtype, requires_grad=True) for n in (queries, keys, keys))
        stdp.attention(q, k, v, StdpWindow(), 1.0).sum().backward()

    return launch


def attention_and_neuron(T: int, B: int, N: int, D: int, dtype: torch.dtype, *, packed: bool) -> Callable[[], None]:
    def launch() -> None:
        qkv = torch.zeros(T, B, N, 3 * D, dtype=dtype, requires_grad=True)
        bits = torch.zeros(T, qkv[0].numel() // 8 if packed else 0, dtype=torch.uint8)
        table, inv_tau = window_table(StdpWindow(), 1, D, qkv.device), torch.tensor(0.5, requires_grad=packed)
        spec = NormLif(time_steps=T, training=False)
        stdp_lif_op(qkv, bits, table, inv_tau, 1.0, 1, *spec.pack())[0].sum().backward()

    return launch


def depthwise_convolution(channels: int, dtype: torch.dtype, *, packed: bool) -> Callable[[], None]:
    def launch() -> None:
        x, weight = torch.zeros(2, 5, 4, channels, dtype=dtype), torch.zeros(channels, 1, 3, 3)
        kept = torch.zeros(x.numel() // 8, dtype=torch.uint8) if packed else x
        depthwise_weight(depthwise(x, weight, True), kept, packed)

    return launch


def packed(T: int, K: int, N: int, neuron: Constants | None, membrane: torch.dtype | None) -> Callable[[], None]:
    """A linear layer and a convolution of packed spikes."""

    def launch() -> None:
        weights = (Weight(zeros8(N, *k), torch.zeros(N), torch.zeros(N)) for k in ((K,), (3, 3, K)))
        for op, x, weight in zip((ops.linear, ops.conv), (zeros8(70, K), zeros8(2, 5, 7, K)), weights, strict=True):
            op(x, weight, neuron, T, None if membrane is None else torch.zeros(T, 70, N, dtype=membrane))

    return launch


def packed_pixels(T: int, neuron: Constants | None, *, still: bool) -> Callable[[], None]:
    def launch() -> None:
        x = torch.zeros(*(() if still else (T,)), 2, 3, 4, 4)
        weight = Weight(torch.zeros(27, 48), torch.zeros(48), torch.zeros(48))
        ops.pixels(x, weight, neuron, T, None if neuron else torch.zeros(T, 32, 48))

    return launch


def packed_attention(T: int, N: int, D: int, *, half: bool) -> Callable[[], None]:
    table = window_table(StdpWindow(), 2, D, torch.device("cpu"))
    return lambda: (ops.stdp(zeros8(3 * N, 6 * D), table, 0.1, HARD, 2, T, N, half=half), None)[1]


def packed_edges() -> None:
    ops.pool(zeros8(2, 5, 7, 3))
    ops.pool(zeros8(2, 8, 8, 8))
    ops.head(ops.mean(torch.zeros(2, 20, 24, dtype=FP16), 10), torch.zeros(5, 24), torch.zeros(5))


def zeros8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int8)


HARD, GENTLE = Constants(0.5, 2.0, None), Constants(0.5, 2.0, 2.0)
PLAIN = NormLif(time_steps=2, training=True, bits=True)
SOFT = NormLif(time_steps=2, training=True, membrane=True, v_reset=None, surrogate="atan", detach_reset=False)
CELLS = {
    "norm": norm(PLAIN, 70, 48, BF16),
    "norm, one row": norm(replace(PLAIN, time_steps=1), 1, 8),
    "norm, residual": norm(SOFT, 70, 20, residual=True),
    "norm, no neuron": norm(replace(SOFT, fire=False, training=False), 9, 16, FP16),
    "norm, pooled": norm(replace(PLAIN, pool=(4, 6)), 48, 16, BF16, shared=True),
    "norm, pooled to one place": norm(replace(PLAIN, pool=(1, 2), bits=False), 2, 20, FP32),
    "depth-wise convolution": depthwise_convolution(96, BF16, packed=True),
    "depth-wise convolution, 20 channels": depthwise_convolution(20, FP32, packed=False),
    "tile of one token": attention(1, 1, 8, FP32),
    "tile": attention(64, 64, 32, BF16),
    "largest tile": attention(128, 128, 128, BF16),
    "neuron of one token": attention_and_neuron(1, 1, 1, 8, FP32, packed=False),
    "tile and neuron": attention_and_neuron(2, 1, 33, 32, BF16, packed=True),
    "buckets": attention(200, 130, 8, FP32),
    "one query": attention(1, 130, 20, FP16),
    "one key": attention(130, 1, 20, FP16),
    "most buckets": attention(200, 200, 128, BF16),
    "packed spikes": packed(4, 96, 96, HARD, None),
    "packed spikes, one step": packed(1, 16, 8, GENTLE, FP16),
    "packed spikes, eight steps": packed(8, 64, 64, HARD, FP32),
    "packed spikes, no neuron": packed(3, 48, 40, None, BF16),
    "packed pixels": packed_pixels(4, HARD, still=True),
    "packed pixels, no neuron": packed_pixels(2, None, still=False),
    "packed attention": packed_attention(4, 64, 32, half=True),
    "packed attention, exact": packed_attention(2, 1, 6, half=False),
    "packed attention, largest": packed_attention(2, 128, 128, half=True),
    "packed pools, mean, head": packed_edges,
    "price of a spike": lambda: add_constant_op(torch.zeros(3, 700, dtype=BF16), 0.5),
}


def main() -> int:
    driver.set_active(Gpu())  # type: ignore[arg-type]
    run, failed = JITFunction.run, 0

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.metadata.shared > SHARED_MEMORY:
            raise MemoryError(f"{self.__name__} takes {kernel.metadata.shared} bytes of shared memory")
        return kernel

    JITFunction.run = compile_only  # type: ignore[method-assign]
    for name, launch in CELLS.items():
        try:
            launch()
            print("compiled", name)
        except Exception as error:
            failed += 1
            print("FAILED", name, f"{type(error).__name__}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
