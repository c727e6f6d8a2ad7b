"""Inference images/s: 4-384, T=4, batch 256, bfloat16, ours as a CUDA graph, beside SpikingJelly's."""

from __future__ import annotations

import sys

from benchmarks import ours, parity
from benchmarks.common import Case, needs_gpu, start
from benchmarks.limits import Ceilings
from benchmarks.peers import Peer, contestants
from benchmarks.rows import Results
from benchmarks.timing import Contestant


def main(case: Case) -> None:
    needs_gpu(case)
    recorded = ours.Inference(case)
    parity.inference(case, recorded)
    results = Results(case)
    floor = ours.floor(case, Ceilings.measure(case), training=False)
    mine = Contestant(f"inference {case.title} {case.precision}, CUDA graph", recorded)
    for peer in contestants(case, Peer.inference):
        results.race([mine], peer, lambda seconds: seconds.images_per_second(case.batch), floor)


if __name__ == "__main__":
    sys.exit(start(main, "inference", __doc__))
