"""Every GPU benchmark, one after another, each in a process of its own with a time limit; all their rows last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import RESULTS, options
from benchmarks.rows import read, table

LIMITS = {"train_step": 220, "inference": 140, "stdp_attention": 95, "kernels": 45}
"""Seconds: together under nine minutes on one GPU, SpikingJelly's compilation included."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def main(argv: Sequence[str] | None = None, limits: Mapping[str, float] = LIMITS) -> int:
    """The exit code: 0 where every benchmark has run to its end."""
    asked = options(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.results or (Path(scratch) if asked.smoke else RESULTS)
        flags = ["--results", str(folder)]
        flags += [flag for flag, on in (("--smoke", asked.smoke), ("--no-peers", asked.no_peers)) if on]
        if torch.cuda.device_count() > 1:
            limits = {**limits, "data_parallel": 120}
        files = {name: folder / f"{name}.csv" for name in limits}
        before = {name: len(read(file)) for name, file in files.items()}
        ended = {name: run(name, flags, limit) for name, limit in limits.items()}
        for name, file in files.items():
            print(f"\n{name}: {ended[name]}\n{table(read(file)[before[name] :])}")
    return int(any(not how.startswith("done") for how in ended.values()))


def run(name: str, flags: Sequence[str], limit: float) -> str:
    """How it ended; what it printed went by as it came."""
    print(f"\n== {name}, at most {limit:g} s", flush=True)
    begun = time.monotonic()
    launcher = TORCHRUN if name == "data_parallel" else ()
    command = [sys.executable, *launcher, "-m", f"benchmarks.{name}", *flags]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # compilers too, which are processes of its own
            process.wait()
    took = f"{time.monotonic() - begun:.0f} s"
    return f"done in {took}" if code == 0 else f"exit code {code} after {took}"


if __name__ == "__main__":
    sys.exit(main())
