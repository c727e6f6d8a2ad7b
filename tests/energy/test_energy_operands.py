"""What a tensor's values are taken for."""

from __future__ import annotations

import math

import pytest
import torch

from s2tdpt.energy import Operand, classify


@pytest.mark.parametrize(
    ("values", "kind", "density", "scale"),
    [
        ([0.0, 1.0, 1.0, 0.0], "binary", 0.5, 1.0),
        ([1.0, 1.0], "binary", 1.0, 1.0),
        ([0.0, 0.0], "binary", 0.0, 1.0),
        ([0.0, 0.3, 0.3, 0.3], "binary", 0.75, 0.3),
        ([0.0, -2.0], "binary", 0.5, -2.0),
        ([0.3, 0.3], "float", 1.0, 1.0),
        ([-1.0, 0.0, 1.0, 0.0], "ternary", 0.5, 1.0),
        ([-0.7, 0.7], "ternary", 1.0, 0.7),
        ([0.0, 1.0, 2.0, 5.0], "integer", 0.75, 1.0),
        ([2.0, 3.0], "integer", 1.0, 1.0),
        ([-1.0, 0.0, 2.0], "integer", 2 / 3, 1.0),
        ([0.0, 0.25, 0.5, 1.0], "integer", 0.75, 0.25),
        ([0.0, 1 / 3, 2 / 3, 1.0], "integer", 0.75, 1 / 3),
        ([0.0, 255.0, 1.0], "integer", 2 / 3, 1.0),
        ([0.0, 256.0, 1.0], "float", 2 / 3, 1.0),
        ([0.5, 0.75, 0.0], "float", 2 / 3, 1.0),
        ([0.1, -0.75, 1.3], "float", 1.0, 1.0),
        ([0.0, 1.0, math.nan], "float", 2 / 3, 1.0),
        ([0.0, 1.0, math.inf], "float", 2 / 3, 1.0),
        ([0.0, math.nan], "float", 0.5, 1.0),
        ([0.0, math.inf], "float", 0.5, 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinds(values, kind, density, scale, dtype):
    found = classify(torch.tensor(values, dtype=dtype))
    assert found.kind == kind
    assert found.density == pytest.approx(density)
    if kind != "float":
        assert found.scale == pytest.approx(scale)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float16])
def test_spikes_of_any_dtype(dtype):
    assert classify(torch.tensor([1, 0, 0, 0]).to(dtype)) == Operand("binary", 0.25)


def test_half_precision_keeps_integers_and_scales():
    assert classify(torch.tensor([0.0, 3.0, 7.0], dtype=torch.bfloat16)).kind == "integer"
    assert classify(torch.tensor([0.0, 0.125, 0.5], dtype=torch.float16)) == Operand(
        "integer", pytest.approx(2 / 3), 0.125
    )


def test_empty_and_complex():
    assert classify(torch.zeros(0)) == Operand("binary", 0.0)
    assert classify(torch.tensor([1 + 1j, 0j])).kind == "float"
