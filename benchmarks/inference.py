"""Inference images/s: 4-384, T=4, batch 256, ours as CUDA graphs beside SpikingJelly's in bfloat16.

Ours: in bfloat16, and on packed spikes with weights in 8 bits.
"""

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
    packed = ours.PackedInference(case)
    parity.packed_inference(case, packed)
    floor = ours.floor(case, Ceilings.measure(case), training=False)
    packed_floor = ours.packed_floor(case, Ceilings.measure(case, eight_bits=True))
    mine = Contestant(f"inference {case.title} {case.precision}, CUDA graph", recorded)
    eight = Contestant(f"inference {case.title} packed spikes, 8-bit weights, CUDA graph", packed)
    for peer in contestants(case, Peer.inference):
        results.race([mine, eight], peer, lambda seconds: seconds.images_per_second(case.batch), floor, packed_floor)


if __name__ == "__main__":
    sys.exit(start(main, "inference", __doc__))
