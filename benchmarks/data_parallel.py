"""Two GPUs against one of them alone, the same batch on each, BatchNorm local to each; torchrun starts it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from benchmarks import ours, parity
from benchmarks.common import Case, needs_gpu, start
from benchmarks.rows import Results
from benchmarks.timing import Seconds, alternate
from s2tdpt.errors import InputError
from s2tdpt.training.distributed import Ranks, join

LAUNCH = "torchrun --standalone --nproc-per-node 2 -m benchmarks.data_parallel"


def main(case: Case) -> None:
    needs_gpu(case, 2)
    with join(case.device) as ranks:
        if ranks.world_size == 1:
            raise InputError(f"one process alone is not parallel: start it with {LAUNCH}")
        if ranks.is_main:
            parity.training(case)
        together = ours.Training(case, graph=True, ranks=ranks)
        alone = {f"one GPU, {k}": ours.Training(case, graph=k != "eager") for k in ("CUDA graph", "eager")}
        many, single = race(case, ranks, together, alone)
        parity.same_on_all(ranks, together.model)
        together.step.close()
        if ranks.is_main:
            report(case, ranks, many, single)


def race(
    case: Case, ranks: Ranks, together: ours.Training, alone: dict[str, ours.Training]
) -> tuple[Seconds, dict[str, Seconds]]:
    """Turns of rank 0 alone, the other devices idle, and of all ranks together."""
    turn = replace(case, rounds=1)
    many: list[float] = []
    single: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(case.rounds):
        for name, step in alone.items() if ranks.is_main else ():
            single[name] += alternate(turn, step)[0].samples
        ranks.sum([0.0])  # the others wait here, on the CPU
        many += alternate(turn, together)[0].samples
    return Seconds(tuple(many)), {name: Seconds(tuple(samples)) for name, samples in single.items()}


def report(case: Case, ranks: Ranks, many: Seconds, single: dict[str, Seconds]) -> None:
    """The limit is the speed of one device, as fast as it gets, times their number."""
    results, devices = Results(case), ranks.world_size
    together = many.images_per_second(case.batch * devices)
    figures = {name: seconds.images_per_second(case.batch) for name, seconds in single.items()}
    fastest = max(figure.median for figure in figures.values())
    for name, alone in figures.items():
        what = f"training step {case.title} a GPU, {devices} GPUs"
        results.add(what, together, name, alone, limit=devices * fastest)


if __name__ == "__main__":
    code = start(main, "data_parallel", __doc__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of gloo's may still run, and taking Python down around it aborts
