"""Training images/s and peak memory: one AdamW step of 4-384, T=4, batch 256, bfloat16, beside SpikingJelly's."""

from __future__ import annotations

import sys

from benchmarks import ours, parity
from benchmarks.common import Case, needs_gpu, start
from benchmarks.limits import Ceilings
from benchmarks.peers import Peer, contestants
from benchmarks.rows import Results
from benchmarks.timing import prepared


def main(case: Case) -> None:
    needs_gpu(case)
    parity.training(case)
    results = Results(case)
    floor = ours.floor(case, Ceilings.measure(case), training=True)
    what = f"training step {case.title} {case.precision}"
    mine = [
        prepared(case, f"{what}, eager", lambda: ours.Training(case, graph=False)),
        prepared(case, f"{what}, CUDA graph", lambda: ours.Training(case, graph=True), records=True),
    ]
    for peer in contestants(case, Peer.training):
        results.race(mine, peer, lambda seconds: seconds.images_per_second(case.batch), floor)


if __name__ == "__main__":
    sys.exit(start(main, "train_step", __doc__))
