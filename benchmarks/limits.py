"""The physical limit: bytes that must move and operations that must be done, at rates measured on this machine.

A run is a list of operators. None can be faster than its bytes at the copy bandwidth, nor than its operations at the
product rate; the limit is the sum over operators of the larger of the two. What the list takes for granted:

- Activations are stored in the timed precision, spikes too; what the backward pass needs of spikes is kept as bits.
- A product reads its input and writes its output once. BatchNorm, residual, neuron and pooling are one pass: read the
  product's output, write spikes. Statistics, and the sums that BatchNorm's gradient needs, cost no pass of their own.
- Weights, statistics and losses are too small to count, but for the optimiser's pass over weights and moments.
- STDP attention goes by spike counts: few operations, so its bytes decide.
- With packed spikes (`packed_work`) a spike is one bit, a product goes straight into its neuron, and only the residual
  sum between blocks is read and written, in half precision.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.common import Case, Run
from benchmarks.timing import alternate

ADAMW_BYTES = 28  # a float32 weight: read it, its gradient and two moments, write all but the gradient


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches: a large copy, bytes read plus bytes written, and a large matrix product."""

    bytes_per_second: float
    operations_per_second: float

    @classmethod
    def measure(cls, case: Case, *, eight_bits: bool = False) -> Ceilings:
        """`eight_bits`: products on a GPU of int8 or of fp8, which have the same rate on paper: the faster ones."""
        elements, side = (2**31, 8192) if case.on_gpu else (2**27, 2048)
        if case.smoke:
            elements, side = 2**16, 64
        source = torch.rand(elements // 4, device=case.device)
        target = torch.empty_like(source)
        rates = []
        for product in _eight_bits(side, case) if case.on_gpu and eight_bits else _products(side, case):
            (seconds,) = alternate(case, product)
            rates.append(2 * side**3 / statistics.median(seconds.samples))
        (seconds,) = alternate(case, lambda: target.copy_(source))
        return cls(2 * elements / statistics.median(seconds.samples), max(rates))


def _products(side: int, case: Case) -> Iterator[Run]:
    for dtype in (torch.bfloat16,) if case.on_gpu else (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=case.device, dtype=dtype) for _ in range(2))
        yield lambda a=a, b=b: a @ b


def _eight_bits(side: int, case: Case) -> Iterator[Run]:
    a, b = (torch.randint(-127, 128, (side, side), device=case.device, dtype=torch.int8) for _ in range(2))
    yield lambda: torch.ops.aten._int_mm(a, b.t())
    if torch.cuda.get_device_capability(case.device) >= (8, 9):
        x, y, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device=case.device)
        yield lambda: torch.ops.aten._scaled_mm(x, y.t(), one, one, None, None, torch.bfloat16, True)


@dataclass(frozen=True)
class Work:
    """What one operator must do."""

    bytes: float
    operations: float = 0.0


@dataclass(frozen=True)
class Floor:
    """The least that a run over `images` images takes."""

    bytes: float
    operations: float
    seconds: float
    ceilings: Ceilings
    images: int = 1

    @classmethod
    def of(cls, works: Iterable[Work], ceilings: Ceilings, images: int = 1) -> Floor:
        works = list(works)
        least = (max(w.bytes / ceilings.bytes_per_second, w.operations / ceilings.operations_per_second) for w in works)
        operations = sum(w.operations for w in works)
        return cls(sum(w.bytes for w in works), operations, sum(least), ceilings, images)

    def best(self, unit: str) -> float:
        """The limit as a figure in that unit."""
        return {"images/s": self.images / self.seconds, "ms": 1e3 * self.seconds}[unit]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: multiplications, and elements in and out, for one image over all steps."""

    name: str
    multiplications: int
    inputs: int
    outputs: int

    @property
    def membrane(self) -> int:
        """Elements of the residual sum that the pass after this layer reads and writes."""
        return self.outputs if self.name.endswith(("attn.proj", "mlp.fc2")) else 0


def layers(model: nn.Module, image: Tensor) -> list[Layer]:
    """The layers in the order in which `model`, module by module, runs them on one image [1, C, H, W]."""
    found: list[Layer] = []

    def watch(name: str, module: nn.Conv2d | nn.Linear) -> None:
        per_output = module.weight.numel() // len(module.weight)

        def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append(Layer(name, per_output * output.numel(), inputs[0].numel(), output.numel()))

        module.register_forward_hook(see)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            watch(name, module)
    with torch.no_grad():
        model(image)
    return found


def model_work(found: list[Layer], *, training: bool, size: int = 2, images: int = 1, weights: int = 0) -> list[Work]:
    """The operators of a batch, forward and, where `training`, backward and AdamW; `size` bytes an activation."""
    works: list[Work] = []
    for first, (layer, following) in enumerate(pairwise([*found, Layer("", 0, 0, 0)])):
        n, out, into = images, layer.outputs, layer.inputs
        attends = layer.name.endswith("qkv")
        spikes = out if attends else following.inputs
        bits = spikes / 8 if training else 0
        works.append(Work(n * size * (into + out), n * 2 * layer.multiplications))
        works.append(Work(n * (size * (out + spikes + 2 * layer.membrane) + bits)))
        if attends:
            works.append(Work(n * size * (out + following.inputs)))
        if not training:
            continue
        kept = size * into if first == 0 else into / 8
        works.append(Work(n * (size * out + kept), n * 2 * layer.multiplications))  # gradient of the weights
        if first:
            works.append(Work(n * size * (into + out), n * 2 * layer.multiplications))  # gradient of the input
        works.append(Work(n * size * (spikes + 2 * out + 2 * layer.membrane)))
        if attends:
            works.append(Work(n * (size * (out + following.inputs) + out / 8)))
    return [*works, Work(ADAMW_BYTES * weights)] if training else works


def packed_work(found: list[Layer], *, images: int) -> list[Work]:
    """The operators of inference on packed spikes."""
    works: list[Work] = []
    for first, (layer, following) in enumerate(pairwise([*found, Layer("", 0, 0, 0)])):
        attends = layer.name.endswith("qkv")
        spikes = layer.outputs if attends else following.inputs
        read = layer.inputs / 8 if first else 4 * layer.inputs
        moved = read + spikes / 8 + 2 * 2 * layer.membrane
        works.append(Work(images * moved, images * 2 * layer.multiplications))
        if attends:
            works.append(Work(images * (spikes + following.inputs) / 8))
    return works
