"""What the table keeps grows with N, what the dense equation keeps grows with N², by the profiler's account."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from s2tdpt.ops import StdpWindow, stdp_attention

from .cases import spikes

D = 16
FLOAT64 = 8


def allocations(path: Path, implementation: str, tokens: int) -> tuple[int, int]:
    """Peak of live bytes and the largest single allocation of a forward and backward pass."""
    query, key, value = (spikes(1, tokens, D, density=0.2, seed=s).requires_grad_() for s in range(3))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = stdp_attention(query, key, value, StdpWindow(), implementation=implementation)  # type: ignore
        torch.autograd.grad(out.sum(), (query, key, value))
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak, max(e["args"]["Bytes"] for e in events)


def test_memory_of_table_is_linear_in_tokens(tmp_path: Path) -> None:
    (peak, largest), (peak2, largest2) = (allocations(tmp_path / "trace.json", "table", n) for n in (1500, 3000))
    assert peak >= 1500 * D * FLOAT64  # the profiler sees what there is to see
    assert peak2 < 2.1 * peak
    assert largest2 < 2.1 * largest
    assert largest2 <= 3000 * D * FLOAT64  # nothing larger than one of the inputs


def test_the_same_account_shows_the_square_of_dense(tmp_path: Path) -> None:
    peak, largest = allocations(tmp_path / "trace.json", "dense", 1500)
    assert largest >= 1500 * 1500 * FLOAT64
    assert peak > largest


@pytest.mark.parametrize(("tokens", "expected"), [(64, "dense"), (65, "table")])
def test_auto_takes_the_table_for_many_tokens(tmp_path: Path, tokens: int, expected: str) -> None:
    peaks = {name: allocations(tmp_path / "trace.json", name, tokens)[0] for name in ("auto", "dense", "table")}
    other = {"dense": "table", "table": "dense"}[expected]
    assert peaks["auto"] == peaks[expected] != peaks[other]
