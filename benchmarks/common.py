"""What all benchmarks share: what is timed, a figure with its spread, and how a benchmark starts and ends."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from s2tdpt.errors import InputError, S2tdptError
from s2tdpt.training.distributed import pick_device
from s2tdpt.training.numerics import numerics

RESULTS = Path(__file__).parent / "results"

Run = Callable[[], Any]
"""One run of what is timed: a training step, a batch, an operator forward and backward."""


class Red(Exception):
    """A parity check has failed: nothing may be said about speed."""


@dataclass(frozen=True)
class Case:
    """What is timed and how often: Spikformer's 4-384 geometry, or one so small that an interpreter can run it."""

    name: str
    device: torch.device
    batch: int
    smoke: bool = False
    peers: bool = True
    results: Path | None = None
    time_steps: int = 4
    image: int = 32
    rounds: int = 3
    repeats: int = 10
    warm_up: int = 3

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """Of what a GPU benchmark times; Triton's interpreter has no bfloat16."""
        return "bfloat16" if self.on_gpu else "float32"

    @property
    def title(self) -> str:
        return f"{'smoke' if self.smoke else '4-384'} T={self.time_steps} batch {self.batch}"

    @property
    def command(self) -> str:
        processes = os.environ.get("WORLD_SIZE")
        launcher = f"torchrun --standalone --nproc-per-node {processes}" if processes else "python"
        flags = [flag for flag, on in (("--smoke", self.smoke), ("--no-peers", not self.peers)) if on]
        return " ".join([launcher, "-m", f"benchmarks.{self.name}", *flags])

    def shrunk(self) -> Case:
        """The smoke case: every line runs, nothing is measured."""
        return replace(self, smoke=True, batch=2, time_steps=2, image=4, rounds=1, repeats=1, warm_up=0)


@dataclass(frozen=True)
class Figure:
    """A median and its spread: the distance between the quartiles."""

    median: float
    spread: float
    unit: str

    @classmethod
    def of(cls, samples: Sequence[float], unit: str) -> Figure:
        if len(samples) == 1:
            return cls(samples[0], 0.0, unit)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, high - low, unit)

    def times_better_than(self, other: Figure) -> float:
        """Above 1 where this figure is the faster or the smaller one."""
        return self.median / other.median if self.unit.endswith("/s") else other.median / self.median


def start(
    main: Callable[[Case], None],
    name: str,
    doc: str | None,
    argv: Sequence[str] | None = None,
    *,
    batch: int = 256,
    gpu: bool = True,
) -> int:
    """Run a benchmark; the exit code: 1 where parity is red, 2 where something is missing, each said in one line."""
    try:
        case = _case(name, options(doc).parse_args(argv), batch, gpu)
        with numerics(case.device, deterministic=False):
            main(case)
    except Red as error:
        print(f"refused: parity is red: {error}", file=sys.stderr)
        return 1
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def options(doc: str | None) -> argparse.ArgumentParser:
    """What every benchmark's command line takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, also without a GPU; keeps no results")
    parser.add_argument("--no-peers", action="store_true", help="without SpikingJelly")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of the CSV files (default: benchmarks/results)")
    return parser


def _case(name: str, asked: argparse.Namespace, batch: int, gpu: bool) -> Case:
    gpu = gpu and torch.cuda.is_available()
    case = Case(name, pick_device("cuda" if gpu else "cpu"), batch, peers=not asked.no_peers, results=asked.results)
    if asked.smoke:
        if not gpu:
            os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which is later
        return case.shrunk()
    return replace(case, results=asked.results or RESULTS)


def needs_gpu(case: Case, count: int = 1) -> None:
    """`InputError` where what is timed runs on GPUs that are not here; a smoke run goes on."""
    found = torch.cuda.device_count()
    if found < count and not case.smoke:
        raise InputError(f"benchmarks.{case.name} needs {count} CUDA device(s), found {found}: --smoke runs its code")
