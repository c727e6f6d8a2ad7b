"""Where the time of a training step goes: milliseconds a step by kind of kernel and by kernel, bfloat16, batch 256."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from benchmarks.common import Case, Figure, needs_gpu, start
from benchmarks.limits import Ceilings
from benchmarks.rows import Results
from benchmarks.timing import prepared

STEPS = 8
SMALLEST_SHARE = 0.005
KINDS = {  # the first that matches
    "products and convolutions": r"nvjet|gemm|xmma|cutlass|conv|split_?k|dgrad|wgrad|aten::(mm|addmm|bmm)",
    "attention": r"^(tile|bucket|neuron)_|stdp",
    "norm, residual, neuron, pooling": r"^(stats|forward|backward|unpack)\w*_kernel|norm_lif",
    "optimiser": r"multi_tensor|adam",
    "copies, fills and the rest": "",
}


def main(case: Case) -> None:
    needs_gpu(case)
    results = Results(case)
    floor = ours.floor(case, Ceilings.measure(case), training=True)
    step = prepared(case, "step", lambda: ours.Training(case, graph=False)).run
    steps = 1 if case.smoke else STEPS
    with profile(activities=[ProfilerActivity.CUDA if case.on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        if case.on_gpu:
            torch.cuda.synchronize()
    by_kernel = {name: per_step(taken, steps) for name, taken in durations(profiler.events(), case.on_gpu).items()}
    by_kind: dict[str, list[float]] = {kind: [0.0] * steps for kind in KINDS}
    for name, taken in by_kernel.items():
        by_kind[kind_of(name)] = [a + b for a, b in zip(by_kind[kind_of(name)], taken, strict=True)]
    whole = [sum(taken) for taken in zip(*by_kind.values(), strict=True)]
    results.add(f"kernels of a training step {case.title}: all", Figure.of(whole, "ms"), floor=floor)
    for kind, taken in by_kind.items():
        results.add(kind, Figure.of(taken, "ms"))
    for name, taken in sorted(by_kernel.items(), key=lambda item: -sum(item[1])):
        if sum(taken) > SMALLEST_SHARE * sum(whole):
            results.add(f"kernel {name[:80]}", Figure.of(taken, "ms"))


def durations(events: Any, on_gpu: bool) -> dict[str, list[float]]:
    """Milliseconds of each launch, by kernel, in order; on a CPU those of each operator without what it calls."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if not on_gpu:
            found[event.name].append(event.self_cpu_time_total / 1e3)
        elif event.device_type.name == "CUDA" and "#" not in event.name:  # marks of whole optimiser steps
            found[event.name].append(event.time_range.elapsed_us() / 1e3)
    return found


def per_step(taken: list[float], steps: int) -> list[float]:
    """Sums by step: each step launches a kernel equally often."""
    each = -(-len(taken) // steps)
    return [sum(taken[i * each : (i + 1) * each]) for i in range(steps)]


def kind_of(kernel: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE))


if __name__ == "__main__":
    sys.exit(start(main, "kernels", __doc__))
