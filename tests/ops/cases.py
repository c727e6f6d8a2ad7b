"""Random spikes and windows for property tests."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from s2tdpt.ops import StdpWindow


def examples(count: int) -> settings:
    """The same examples in every run, for as long as they take."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, derandomize=True, deadline=None, suppress_health_check=quiet)


@dataclass
class Case:
    query: Tensor
    key: Tensor
    value: Tensor
    window: StdpWindow
    scale: float

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value


def spikes(*shape: int, density: float, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).to(dtype)


def windows(heads: int | None) -> st.SearchStrategy[StdpWindow]:
    """Symmetric and asymmetric ones, with and without a jump, with any of the constants given per head."""

    def constant(low: float, high: float) -> st.SearchStrategy[float | tuple[float, ...]]:
        number = st.floats(low, high)
        return number if heads is None else number | st.tuples(*[number] * heads)

    ranges = {"a_plus": (-1, 1), "a_minus": (-1, 1), "tau_plus": (2, 60), "tau_minus": (2, 60), "t_max": (1, 80)}
    assert [*ranges, "offset", "jump"] == [f.name for f in fields(StdpWindow)]
    return st.just(StdpWindow()) | st.builds(
        StdpWindow, **{k: constant(*r) for k, r in ranges.items()}, offset=constant(-1, 1), jump=st.booleans()
    )


@st.composite
def cases(draw: st.DrawFn, *, max_tokens: int, max_dim: int, max_elements: int = 400_000, lead: int = 3) -> Case:
    """Any density from all-silent to all-firing, Nq != Nk, and counts forced to tie in a third of the cases."""
    head_dim, value_dim = draw(st.integers(1, max_dim)), draw(st.integers(1, max_dim))
    n_q, n_k = draw(st.integers(1, max_tokens)), draw(st.integers(1, max_tokens))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=lead)))
    size = max(n_q * n_k, n_q * head_dim, n_k * max(head_dim, value_dim))
    while shape and size * torch.Size(shape).numel() > max_elements:
        shape = shape[1:]
    density = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    seed = draw(st.integers(0, 10_000))
    query = spikes(*shape, n_q, head_dim, density=draw(density), seed=seed)
    key = spikes(*shape, n_k, head_dim, density=draw(density), seed=seed + 1)
    if draw(st.sampled_from(["free", "free", "tied"])) == "tied":  # same counts, other features
        key = query.flip(-1)[..., torch.arange(n_k) % n_q, :]
    value = spikes(*shape, n_k, value_dim, density=draw(density), seed=seed + 2)
    window = draw(windows(shape[-1] if shape else None))
    return Case(query, key, value, window, draw(st.floats(-2, 2)))


def tolerance(reference: Tensor) -> float:
    return 1e-12 * max(1.0, float(reference.abs().max()))


def assert_close(got: Tensor, reference: Tensor) -> None:
    """Within 1e-12 · max(1, max|reference|)."""
    assert got.shape == reference.shape
    assert got.dtype == reference.dtype
    got, reference = got.detach(), reference.detach()
    error = float((got - reference).abs().max())
    assert error <= tolerance(reference), f"differ by {error:.3g}, {tolerance(reference):.3g} is allowed"
