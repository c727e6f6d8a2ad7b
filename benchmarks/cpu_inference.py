"""Evaluation images/s on a CPU: 4-384, T=4, batch 16, two threads, beside SpikingJelly in float32 and bfloat16.

Ours: the plain model, and `compile_for_inference` in float32 and as it chooses for this CPU.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import torch

from benchmarks import ours, parity
from benchmarks.common import Case, Run, start
from benchmarks.limits import Ceilings
from benchmarks.peers import contestant
from benchmarks.rows import Results
from benchmarks.timing import prepared
from s2tdpt.inference import compile_for_inference

THREADS = 2
PEERS = ("float32", "bfloat16")


def variants(case: Case) -> dict[str, Run]:
    """The same weights through each of ours, after every one's logits have been found to be right."""
    x, _ = ours.batch(case)
    plain = ours.in_eight_bits(ours.evaluated(case, "plain"))
    chosen = compile_for_inference(plain, example=x)
    models = {"plain float32": plain, "compiled float32": compile_for_inference(plain, precision="float32")}
    models[f"compiled, chosen here: {chosen.precision}"] = chosen
    runs = {name: ours.inferring(model, x, "float32") for name, model in models.items()}
    truth = ours.inferring(copy.deepcopy(plain).double(), x.double(), "float32")()
    for name, run in runs.items():
        parity.same_images(f"CPU evaluation, {name}", run(), truth)
    return runs


def main(case: Case) -> None:
    torch.set_num_threads(THREADS)
    case = case if case.smoke else replace(case, repeats=2, warm_up=1)
    what = f"CPU evaluation {case.title}"
    mine = [prepared(case, f"{what}, {name}", lambda run=run: run) for name, run in variants(case).items()]
    results = Results(case)
    floor = ours.floor(case, Ceilings.measure(case), training=False)
    for name in PEERS if case.peers else (None,):
        peer = contestant(case, lambda peer, name=name: peer.inference(name), f"eager {name}") if name else None
        results.race(mine, peer, lambda seconds: seconds.images_per_second(case.batch), floor)


if __name__ == "__main__":
    sys.exit(start(main, "cpu_inference", __doc__, batch=16, gpu=False))
