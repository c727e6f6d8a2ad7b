"""Cells to test, random inputs for them, and how far a kernel may be from the reference."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s2tdpt.ops.lif.surrogate import resolve

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Error ratio of what is stored in that dtype; the interpreter truncates to bfloat16, a GPU rounds to nearest."""

NEURONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "atan, reset below zero": {"v_reset": -0.3, "surrogate": "atan", "detach_reset": False},
    "soft": {"v_reset": None, "v_threshold": 0.7},
    "soft, undecayed input": {"v_reset": None, "detach_reset": False, "decay_input": False, "alpha": 3.0},
    "undecayed input": {"decay_input": False, "surrogate": "atan", "alpha": 1.5, "v_threshold": 1.3},
}
NEURON_GRID = [
    {"surrogate": surrogate, "v_reset": v_reset, "detach_reset": detach_reset, "decay_input": decay_input}
    for surrogate, v_reset, detach_reset, decay_input in itertools.product(
        ("sigmoid", "atan"), (0.0, -0.3, None), (True, False), (True, False)
    )
]


def neuron_constants(options: dict[str, Any]) -> dict[str, Any]:
    """All constants of a neuron, as `ops.lif.reference` takes them, but for tau."""
    defaults = {"v_threshold": 1.0, "v_reset": 0.0, "decay_input": True, "detach_reset": True, "surrogate": "sigmoid"}
    constants = defaults | options
    return constants | {"alpha": resolve(constants["surrogate"], options.get("alpha"))}


def describe(value: object) -> str:
    """A name for a parameter of a test."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}".replace("torch.", "") for k, v in value.items())
    return str(value).replace("torch.", "")


def all_pairs(allowed: Callable[..., bool] = lambda **_: True, **axes: Any) -> list[dict[str, Any]]:
    """Cells such that every pair of values of two axes that some allowed cell has is in one of them."""
    places = itertools.product(*(range(len(values)) for values in axes.values()))
    cells = [place for place in places if allowed(**_cell(axes, place))]
    missing = set().union(*map(_pairs, cells))
    draw, chosen = random.Random(0), []
    while missing:
        some = draw.sample(cells, min(len(cells), 50))
        best = max(some, key=lambda place: len(_pairs(place) & missing))
        if not _pairs(best) & missing:
            best = next(place for place in cells if _pairs(place) & missing)
        chosen.append(_cell(axes, best))
        missing -= _pairs(best)
    return chosen


def _cell(axes: dict[str, Any], place: tuple[int, ...]) -> dict[str, Any]:
    return {name: values[i] for (name, values), i in zip(axes.items(), place, strict=True)}


def _pairs(place: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(place), 2))


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same on every device."""
    return fenced(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def spikes(*shape: int, density: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random spikes, the same on every device."""
    fired = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return fenced(fired.to(dtype))


def fenced(x: Tensor) -> Tensor:
    """A copy on the device, with NaN before and after it in memory."""
    copy = torch.empty(x.shape, dtype=x.dtype, device=DEVICE)
    return copy.copy_(x)


def error_ratio(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖; 0 where both are 0, infinite where only `want` is."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    got, want = got.detach().double(), want.detach().double()
    difference, size = float((got - want).norm()), float(want.norm())
    return difference / size if size else (float("inf") if difference else 0.0)


def assert_close(got: Tensor, want: Tensor, tolerance: float, name: str) -> None:
    ratio = error_ratio(got, want)
    assert ratio <= tolerance, f"{name}: error ratio {ratio:.2e}, {tolerance:.0e} is allowed"  # NaN fails too


def distance_to_threshold(current: Tensor, inv_tau: float, neuron: dict[str, Any]) -> Tensor:
    """How near the charged membranes of current [T, ...] come to the threshold: [...]."""
    v_threshold, v_reset = neuron["v_threshold"], neuron["v_reset"]
    rest = v_reset or 0.0
    v = torch.full_like(current[0], rest)
    nearest = torch.full_like(v, float("inf"))
    for x in current:
        leak = (v - rest) * inv_tau
        charged = v - leak + (x * inv_tau if neuron["decay_input"] else x)
        nearest = torch.minimum(nearest, (charged - v_threshold).abs())
        fired = charged >= v_threshold
        v = torch.where(fired, charged - v_threshold if v_reset is None else rest, charged)
    return nearest
