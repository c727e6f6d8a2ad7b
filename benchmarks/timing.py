"""How long runs take, how much memory they hold, and their recording as CUDA graphs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import Case, Figure, Run

GRAPH_WARM_UP = 3


@dataclass(frozen=True)
class Seconds:
    """What each run took."""

    samples: tuple[float, ...]

    def images_per_second(self, images: int) -> Figure:
        return Figure.of([images / s for s in self.samples], "images/s")

    def milliseconds(self) -> Figure:
        return Figure.of([1e3 * s for s in self.samples], "ms")


def alternate(case: Case, *runs: Run) -> list[Seconds]:
    """Time the runs in turns, so that a change of clocks or load meets them all; the first run of a turn is left out.

    By CUDA events on a GPU, where nothing waits for the device between the runs of a turn; elsewhere by the clock.
    """
    measure = _by_events if case.on_gpu else _by_clock
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(case.rounds):
        for run, taken in zip(runs, samples, strict=True):
            if not case.smoke:
                run()
            taken += measure(run, case.repeats)
    return [Seconds(tuple(taken)) for taken in samples]


def _by_events(run: Run, repeats: int) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def _by_clock(run: Run, repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return taken


@dataclass(frozen=True)
class Contestant:
    """What is raced, warmed up; `memory`: the most that it holds while it runs, beyond what was held before."""

    name: str
    run: Run
    memory: Figure | None = None


def prepared(case: Case, name: str, make: Callable[[], Run], *, records: bool = False) -> Contestant:
    """`make()`, warmed up and, on a GPU, weighed.

    `records`: the first run records a CUDA graph, and only then allocates, so it is that run which is weighed.
    """
    if not case.on_gpu:
        run = make()
        for _ in range(case.warm_up):
            run()
        return Contestant(name, run)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    run = make()
    for _ in range(0 if records else case.warm_up + 1):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return Contestant(name, run, Figure((torch.cuda.max_memory_allocated() - before) / 2**30, 0.0, "GiB"))


def graphed(case: Case, run: Run) -> Run:
    """The run as a CUDA graph, whose result each replay overwrites; the run itself where there is no GPU."""
    if not case.on_gpu:
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
