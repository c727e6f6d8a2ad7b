"""The kernels of norm, residual and neuron against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from s2tdpt.errors import InputError
from s2tdpt.ops.norm_lif import NormLif
from s2tdpt.ops.norm_lif import triton as launcher
from s2tdpt.ops.norm_lif.triton import batch_statistics, norm_lif, unpack

from .cases import (
    DTYPES,
    NEURON_GRID,
    NEURONS,
    all_pairs,
    assert_close,
    describe,
    fenced,
    neuron_constants,
    noise,
    spikes,
)
from .norm import check, make_inputs

SHAPES = ((1, 48), (5, 8), (37, 20), (70, 48), (9, 136))
OUTPUTS = {
    "spikes": {},
    "spikes and membrane": {"membrane": True},
    "membrane": {"membrane": True, "fire": False},
}


def sensible(
    T: int, shape: tuple[int, int], training: bool, shared: bool, outputs: str, residual: bool, **_: Any
) -> bool:
    if shared and T == 1:
        return False  # one step is no sharing
    if training and shape[0] == 1 and (T == 1 or shared):
        return False  # one value a channel has no variance
    return outputs != "spikes" or not residual


CELLS = all_pairs(
    sensible, T=(1, 2, 4), shape=SHAPES, dtype=DTYPES, training=(True, False), shared=(False, True),
    outputs=tuple(OUTPUTS), residual=(False, True), neuron=tuple(NEURONS), learn_tau=(True, False),
)  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=describe)
def test_pairs(cell: dict[str, Any]) -> None:
    rows, channels = cell["shape"]
    outputs = OUTPUTS[cell["outputs"]]
    spec = NormLif(
        time_steps=cell["T"], training=cell["training"], eps=1e-3, bits=outputs.get("fire", True) and channels % 8 == 0,
        **outputs, **neuron_constants(NEURONS[cell["neuron"]]),
    )  # fmt: skip
    options = {name: cell[name] for name in ("dtype", "shared", "residual")}
    learn_tau = cell["learn_tau"] and spec.fire
    check(spec, make_inputs(spec, rows, channels, **options), learn_tau=learn_tau)


@pytest.mark.parametrize("T", [1, 2, 4])
@pytest.mark.parametrize("neuron", NEURON_GRID, ids=describe)
def test_every_neuron(neuron: dict[str, Any], T: int) -> None:
    spec = NormLif(time_steps=T, training=True, **neuron_constants(neuron))
    check(spec, make_inputs(spec, 9, 8))


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("membrane", [False, True])
def test_a_program_takes_several_tiles(monkeypatch: pytest.MonkeyPatch, programs: int, membrane: bool) -> None:
    monkeypatch.setattr(launcher, "_PROGRAMS", programs)
    spec = NormLif(time_steps=2, training=True, membrane=membrane)
    check(spec, make_inputs(spec, 300, 20, residual=membrane))


def test_more_programs_than_are_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    y = noise(70 * 64 + 5, 8, seed=0)
    mean, var = batch_statistics(y)
    assert_close(mean, y.double().mean(0), 1e-5, "mean")
    assert_close(var, y.double().var(0, unbiased=False), 1e-5, "variance")
    monkeypatch.setattr(launcher, "_BACKWARD_TILE", 64)  # 4 rows of 16 channels
    spec = NormLif(time_steps=1, training=True)
    check(spec, make_inputs(spec, 70 * 4 + 1, 8))


def test_variance_of_a_small_spread_far_from_zero() -> None:
    y = fenced(noise(3, 200, 20, seed=0) + 1000)
    mean, var = batch_statistics(y)
    assert_close(mean, y.double().mean((0, 1)), 1e-6, "mean")
    assert_close(var, y.double().var((0, 1), unbiased=False), 1e-4, "variance")


def test_rows_that_are_all_the_same_have_no_variance() -> None:
    mean, var = batch_statistics(fenced(torch.full((2, 9, 8), 1 / 3)))
    assert torch.equal(mean, torch.full_like(mean, 1 / 3))
    assert torch.equal(var, torch.zeros_like(var))


def test_inputs_in_any_memory_order() -> None:
    spec = NormLif(time_steps=2, training=True, membrane=True)
    inputs = make_inputs(spec, 12, 20, residual=True)
    dense = norm_lif(*inputs.as_arguments(), spec)
    turned = replace(
        inputs,
        y=inputs.y.transpose(0, 2).contiguous().transpose(0, 2),
        residual=inputs.residual.transpose(1, 2).contiguous().transpose(1, 2),  # type: ignore[union-attr]
    )
    strided = norm_lif(*turned.as_arguments(), spec)
    for a, b in zip(dense, strided, strict=True):
        assert torch.equal(a, b)


def test_gradients_in_any_memory_order() -> None:
    spec = NormLif(time_steps=2, training=True, membrane=True)
    inputs = make_inputs(spec, 12, 20)

    def gradient(g: torch.Tensor) -> torch.Tensor:
        leaves = inputs.leaves(None, False)
        fired, membrane, *_ = norm_lif(*leaves.as_arguments(), spec)
        return torch.autograd.grad([fired, membrane], leaves.y, [g, g])[0]

    g = noise(2, 12, 20, seed=5)
    assert torch.equal(gradient(g), gradient(g.transpose(0, 2).contiguous().transpose(0, 2)))
    assert torch.equal(gradient(torch.ones_like(g)), gradient(torch.ones(1, device=g.device).expand_as(g)))


@pytest.mark.parametrize("used", [0, 1], ids=["spikes", "membrane"])
def test_gradients_where_one_output_is_not_used(used: int) -> None:
    spec = NormLif(time_steps=2, training=True, membrane=True)
    inputs = make_inputs(spec, 12, 20)

    leaves = inputs.leaves(None, False)
    outputs = norm_lif(*leaves.as_arguments(), spec)[:2]
    g = [noise(2, 12, 20, seed=5) if i == used else torch.zeros_like(outputs[0]) for i in range(2)]
    learnt = list(leaves.learnt().values())
    both = torch.autograd.grad(outputs, learnt, g, retain_graph=True)
    for alone, beside in zip(torch.autograd.grad(outputs[used], learnt, g[used]), both, strict=True):
        assert torch.equal(alone, beside)


@pytest.mark.parametrize("options", [{"residual": True}, {"pool": (3, 4), "membrane": True}])
def test_what_no_kernel_does_is_refused(options: dict[str, Any]) -> None:
    residual = options.pop("residual", False)
    spec = NormLif(time_steps=2, training=True, **options)
    inputs = make_inputs(replace(spec, pool=None, fire=False), 12, 8, residual=residual)
    with pytest.raises(InputError, match="membrane"):
        norm_lif(*inputs.as_arguments(), spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=describe)
@pytest.mark.parametrize("shape", [(8,), (3, 5, 24), (2, 4096), (1, 4104)])
def test_bits_unpack(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    fired = spikes(*shape, density=0.5, seed=3, dtype=dtype)
    weights = 2 ** torch.arange(8, device=fired.device)
    bits = fenced((fired.view(-1, 8).int() * weights).sum(1).to(torch.uint8))
    assert torch.equal(unpack(bits, shape, dtype), fired)
