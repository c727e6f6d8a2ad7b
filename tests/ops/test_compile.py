"""torch.compile takes the operators whole: no graph break, the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from s2tdpt.ops import StdpWindow, lif, stdp_attention

from .cases import assert_close, spikes

WINDOW = StdpWindow(a_plus=(0.4, 0.2), tau_minus=9.0)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def both(function, *inputs: Tensor, backend: str) -> list[tuple[Tensor, ...]]:
    """Output and gradients, eager and compiled."""
    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(*leaves)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    return results


@pytest.mark.parametrize(
    ("implementation", "backend"), [("dense", "eager"), ("table", "eager"), ("table", "aot_eager"), ("auto", "eager")]
)
def test_attention_compiles_whole(implementation: str, backend: str) -> None:
    inputs = [spikes(2, 9, 6, density=0.5, seed=s) for s in range(3)]
    eager, compiled = both(
        lambda q, k, v: stdp_attention(q, k, v, WINDOW, scale=0.5, implementation=implementation),  # type: ignore
        *inputs,
        backend=backend,
    )
    for a, b in zip(compiled, eager, strict=True):
        assert_close(a, b)


def test_neuron_compiles_whole() -> None:
    current = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    eager, compiled = both(lambda x: lif(x)[0], current, backend="aot_eager")
    for a, b in zip(compiled, eager, strict=True):
        assert_close(a, b)
