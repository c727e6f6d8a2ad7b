"""The kernels on packed spikes against PyTorch's operators on numbers whose every sum float32 holds: byte for byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from s2tdpt.ops.packed import Constants, edge_kernels, pack, unpack
from s2tdpt.ops.packed import triton as ops
from s2tdpt.ops.packed.neuron import ptx
from s2tdpt.ops.packed.triton import Weight
from s2tdpt.ops.stdp import StdpWindow, stdp_attention, stdp_weights
from s2tdpt.ops.stdp.launch import window_table

from .cases import DEVICE, all_pairs, describe, error_ratio, fenced, spikes

NEURONS = {
    "hard": Constants(0.5, 2.0, None),
    "soft": Constants(0.5, 2.0, 2.0),
    "tau 1": Constants(0.0, 1.0, None),
    "tau 4": Constants(0.75, 2.5, None),
}
STEPS = (1, 2, 3, 4, 8)
STORED = (None, torch.float16, torch.float32)


def whole(*shape: int, below: int, seed: int) -> Tensor:
    """Whole numbers, float64, of magnitudes up to `below`."""
    return torch.randint(-below, below + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def layer(outputs: int, *inputs: int, seed: int = 1) -> tuple[Weight, Tensor, Tensor, Tensor]:
    """A layer that makes neurons fire, and levels, scale and bias in float64 on the CPU."""
    levels = whole(outputs, *inputs, below=127, seed=seed)
    levels[0] = 127
    levels[-1] = -127
    scale = (1 + whole(outputs, below=15, seed=seed + 1).abs()) / 2**11
    bias = whole(outputs, below=64, seed=seed + 2) / 64 + 0.5
    kernels = levels.permute(0, 2, 3, 1) if levels.ndim == 4 else levels
    weight = Weight(fenced(kernels.to(torch.int8)), fenced(scale.float()), fenced(bias.float()))
    return weight, levels, scale, bias


def check(got: Tensor, currents: Tensor, neuron: Constants, shape: tuple[int, ...]) -> None:
    """Packed spikes [...] are those of float64 currents [T, ...], neither silent nor all alike."""
    want = neuron.fire(currents)
    assert got.dtype == torch.int8
    assert got.shape == shape
    assert torch.equal(unpack(got.cpu(), len(currents)).view_as(want), want)
    assert want.numel() < 200 or 0.01 < want.double().mean() < 0.9


LINEAR = all_pairs(T=STEPS, shape=((1, 16, 8), (70, 48, 40), (37, 33, 72), (64, 130, 64), (5, 8, 300)),
                   neuron=tuple(NEURONS), stored=STORED)  # fmt: skip


@pytest.mark.parametrize("cell", LINEAR, ids=describe)
def test_linear(cell: dict[str, Any]) -> None:
    T, (M, K, N), neuron = cell["T"], cell["shape"], NEURONS[cell["neuron"]]
    x = spikes(T, M, K, density=0.3, seed=0, dtype=torch.uint8)
    weight, levels, scale, bias = layer(N, K)
    currents = x.cpu().double() @ levels.T * scale + bias
    before, membrane = whole(T, M, N, below=100, seed=5) / 64, None
    if cell["stored"] is not None:
        membrane = fenced(before.to(cell["stored"]))
        currents = currents + before
    got = ops.linear(pack(x), weight, neuron, T, membrane)
    check(got, currents, neuron, (M, N))
    if membrane is not None:
        assert torch.equal(membrane.cpu(), currents.to(membrane.dtype))
        ops.linear(pack(x), weight, None, T, membrane)  # the last layer has no neuron behind it
        assert error_ratio(membrane.cpu(), 2 * currents - before) < 1e-3


CONVOLUTIONS = all_pairs(T=STEPS, size=((2, 1, 1), (2, 5, 7), (1, 8, 4)), channels=(8, 24, 32, 48, 64, 96),
                         outputs=(8, 40, 96), neuron=tuple(NEURONS), stored=STORED)  # fmt: skip


@pytest.mark.parametrize("cell", CONVOLUTIONS, ids=describe)
def test_conv(cell: dict[str, Any]) -> None:
    T, (B, H, W), C, N = cell["T"], cell["size"], cell["channels"], cell["outputs"]
    neuron = NEURONS[cell["neuron"]]
    x = spikes(T, B, H, W, C, density=0.3, seed=0, dtype=torch.uint8)
    weight, levels, scale, bias = layer(N, C, 3, 3)
    sums = F.conv2d(x.cpu().double().flatten(0, 1).permute(0, 3, 1, 2), levels, padding=1)
    currents = sums.permute(0, 2, 3, 1).unflatten(0, (T, B)) * scale + bias
    membrane = None if cell["stored"] is None else torch.empty(T, B * H * W, N, dtype=cell["stored"], device=DEVICE)
    check(ops.conv(pack(x), weight, neuron, T, membrane), currents, neuron, (B, H, W, N))
    if membrane is not None:
        assert torch.equal(membrane.cpu(), currents.flatten(1, 3).to(membrane.dtype))


PIXELS = all_pairs(T=(1, 2, 4), size=((2, 1, 1), (2, 5, 7), (1, 8, 4)), channels=(1, 3, 5), outputs=(8, 33, 48, 64),
                   neuron=(None, *NEURONS), still=(True, False), last=(True, False))  # fmt: skip


@pytest.mark.parametrize("cell", PIXELS, ids=describe)
def test_pixels(cell: dict[str, Any]) -> None:
    T, (B, H, W), C, N = cell["T"], cell["size"], cell["channels"], cell["outputs"]
    neuron = NEURONS[cell["neuron"]] if cell["neuron"] else None
    images = whole(1 if cell["still"] else T, B, C, H, W, below=63, seed=0) / 32
    kernels, bias = whole(N, C, 3, 3, below=31, seed=1) / 64, whole(N, below=64, seed=2) / 64 + 0.5
    currents = F.conv2d(images.flatten(0, 1), kernels, padding=1).permute(0, 2, 3, 1).unflatten(0, (-1, B)) + bias
    currents = currents.expand(T, *currents.shape[1:])
    weight = Weight(fenced(kernels.flatten(1).T.float()), torch.ones(N, device=DEVICE), fenced(bias.float()))
    x = fenced(images.float())
    x = x.contiguous(memory_format=torch.channels_last_3d) if cell["last"] else x
    membrane = torch.empty(T, B * H * W, N, device=DEVICE)
    got = ops.pixels(x[0] if cell["still"] else x, weight, neuron, T, membrane)
    assert torch.equal(membrane.cpu(), currents.flatten(1, 3).float())
    if neuron is not None:
        check(got, currents, neuron, (B, H, W, N))


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 8, 8, 8), (1, 1, 2, 4), (3, 2, 2, 5)])
def test_pool(shape: tuple[int, ...]) -> None:
    x = spikes(8, *shape, density=0.1, seed=0, dtype=torch.uint8)
    want = F.max_pool2d(x.cpu().double().flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    assert torch.equal(unpack(ops.pool(pack(x)).cpu(), 8), want.unflatten(0, (8, -1)).to(torch.uint8))


STDP = all_pairs(T=STEPS, shape=((1, 2, 8), (10, 2, 6), (20, 1, 24), (64, 3, 32), (128, 1, 16)),
                 soft=(True, False), half=(True, False))  # fmt: skip


@pytest.mark.parametrize("cell", STDP, ids=describe)
def test_stdp(cell: dict[str, Any]) -> None:
    T, (N, H, D), B = cell["T"], cell["shape"], 2
    x = spikes(T, B, N, 3 * H * D, density=0.3, seed=0, dtype=torch.uint8)
    x[..., :D] = 1  # a count of all features
    q, k, v = x.cpu().double().view(T, B, N, 3, H, D).permute(3, 0, 1, 4, 2, 5)
    window = StdpWindow(a_plus=tuple(0.3 + 0.1 * i for i in range(H)), tau_minus=13.0, offset=0.6)
    gain = 8 / N
    currents = stdp_attention(q, k, v, window, scale=gain, implementation="dense").transpose(2, 3).flatten(3)
    threshold = float(currents.median())
    neuron = Constants(0.5, threshold, threshold if cell["soft"] else None)
    table = window_table(window, H, D, torch.device(DEVICE))
    got = ops.stdp(pack(x).view(B * N, -1), table, gain, neuron, H, T, N, half=cell["half"])
    wrong = unpack(got.cpu(), T).view_as(currents) != neuron.fire(currents)
    near = nearest(currents, neuron) < (2e-3 if cell["half"] else 1e-5) * threshold
    assert not bool((wrong & ~near).any())
    assert bool(got.any())
    assert near.double().mean() < 0.2


def nearest(currents: Tensor, neuron: Constants) -> Tensor:
    """How near the membranes of currents [T, ...] come to the threshold: [...]."""
    n, found = torch.zeros_like(currents[0]), torch.full_like(currents[0], float("inf"))
    for x, fired in zip(currents, neuron.fire(currents), strict=True):
        n = n * neuron.decay + x
        found = torch.minimum(found, (n - neuron.threshold).abs())
        n = torch.where(fired > 0, 0.0 if neuron.soft is None else n - neuron.soft, n)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mean_and_head(dtype: torch.dtype) -> None:
    u = fenced(whole(3, 2 * 37, 140, below=99, seed=0).to(dtype) / 8)
    mean = ops.mean(u, 37)
    truth = u.double().view(3, 2, 37, 140).mean((0, 2))
    assert error_ratio(mean, truth) < 1e-6
    weight, bias = (fenced(whole(*shape, below=9, seed=1).float()) for shape in ((19, 140), (19,)))
    assert error_ratio(ops.head(mean, weight, bias), F.linear(truth, weight.double(), bias.double())) < 1e-6


@pytest.mark.parametrize("T", STEPS)
def test_pack(T: int) -> None:
    x = spikes(T, 3, 5, density=0.5, seed=0, dtype=torch.uint8)
    assert pack(x).dtype == torch.int8
    assert torch.equal(unpack(pack(x), T), x)


@pytest.mark.parametrize("T", range(1, 9))
@pytest.mark.parametrize("neuron", NEURONS)
def test_ptx(neuron: str, T: int) -> None:
    constants = NEURONS[neuron]
    currents = whole(T, 4 * 25, below=96, seed=T) / 32
    words = [
        run(ptx(T, soft=constants.soft is not None), four, constants)
        for four in currents.unflatten(1, (-1, 4)).unbind(1)
    ]
    assert torch.equal(
        torch.tensor(words),
        pack(constants.fire(currents)).view(torch.uint8).view(-1, 4).long()
        @ torch.tensor([1, 1 << 8, 1 << 16, 1 << 24]),
    )


def test_ptx_of_the_window() -> None:
    window = StdpWindow(a_plus=0.3, a_minus=0.2, tau_plus=11.0, tau_minus=23.0, t_max=40.0, offset=0.45)
    a_plus, a_minus, e_plus, e_minus, *levels = window_table(window, 1, 8, torch.device("cpu"))[0].tolist()
    for r_q, r_k in itertools.product(range(9), range(9)):
        given = (r_q, r_k, a_plus, -a_minus, -e_plus, e_minus, *levels)
        got = emulate(edge_kernels._WINDOW_ASM.value, {f"${1 + i}": x for i, x in enumerate(given)})
        q, k = (torch.arange(8).lt(count).double().view(1, 1, 8) for count in (r_q, r_k))
        assert got == pytest.approx(float(stdp_weights(q, k, window)), abs=1e-6)


def run(text: str, currents: Tensor, constants: Constants) -> int:
    """What PTX of a neuron leaves in $0, from currents [T, 4]."""
    values: dict[str, Any] = {f"${1 + i}": x for i, x in enumerate(currents.flatten().tolist())}
    for i, x in enumerate((constants.decay, constants.threshold, constants.soft or 0.0)):
        values[f"${1 + currents.numel() + 4 * i}"] = x
    return emulate(text, values)


OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "mov": lambda a, b, c: a,
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "mul": lambda a, b, c: a * b,
    "fma": lambda a, b, c: a * b + c,
    "ex2": lambda a, b, c: 2.0**a,
    "setp.gt": lambda a, b, c: a > b,
    "setp.ge": lambda a, b, c: a >= b,
}


def emulate(text: str, values: dict[str, Any]) -> Any:
    """What PTX of a few instructions leaves in $0."""
    values["0f00000000"] = 0.0
    for line in text.strip("{} ").split(";"):
        words = line.replace(",", " ").split()
        if not words or words[0] == ".reg":
            continue
        if words[0].startswith("@"):
            guard = words.pop(0)
            if values[guard.strip("@!")] == guard.startswith("@!"):
                continue
        operation, to, *given = words
        a, b, c = (*(values[x] if x in values else int(x) for x in given), 0, 0)[:3]
        name, kind, *_ = operation.split(".")
        values[to] = OPERATIONS[f"{name}.{kind}" if name == "setp" else name](a, b, c)
    return values["$0"]
