"""Evaluation images/s on a CPU: 4-384, T=4, batch 16, two threads, beside SpikingJelly in float32 and bfloat16."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from benchmarks import ours, parity
from benchmarks.common import Case, start
from benchmarks.limits import Ceilings
from benchmarks.peers import contestant
from benchmarks.rows import Results
from benchmarks.timing import prepared

THREADS = 2
PRECISIONS = ("float32", "bfloat16")


def main(case: Case) -> None:
    torch.set_num_threads(THREADS)
    case = case if case.smoke else replace(case, rounds=5, repeats=2, warm_up=1)
    parity.cpu_inference(case)
    results = Results(case)
    floor = ours.floor(case, Ceilings.measure(case), training=False)
    model, (x, _) = ours.evaluated(case, "auto"), ours.batch(case)
    what = f"CPU evaluation {case.title}"
    mine = [prepared(case, f"{what}, {name}", lambda name=name: ours.inferring(model, x, name)) for name in PRECISIONS]
    for name in PRECISIONS if case.peers else (None,):
        peer = contestant(case, lambda peer, name=name: peer.inference(name), f"eager {name}") if name else None
        results.race(mine, peer, lambda seconds: seconds.images_per_second(case.batch), floor)


if __name__ == "__main__":
    sys.exit(start(main, "cpu_inference", __doc__, batch=16, gpu=False))
