"""Runs the ablation: python -m results.ablation [ITEM …] --seeds 0 1

An item is recipes/two_minutes.yaml but for one change. Runs are done in a queue, one process a GPU, each with its own
log; what is finished is left alone, what was interrupted goes on. Each finished run is taken into results/ and
ablation.csv, as `python -m results.add RUN --ablation ITEM` does. "distill" learns from the "vit" of the same seed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from results import add, rows
from s2tdpt.errors import S2tdptError
from s2tdpt.training.folder import METRICS, RECIPE
from s2tdpt.training.recipe import Recipe, load_recipe, parse_overrides
from s2tdpt.training.schedule import parse_plan

LOOK_EVERY = 0.5  # seconds


def items(base: Recipe, teacher: Path) -> dict[str, dict[str, Any]]:
    """What each item changes in `base`, by dotted key. Plans with one number of steps take about as much time."""
    *_, last = phases = parse_plan(base.schedule.time_steps)
    cost = sum(phase.cost for phase in phases)
    twin = base.model.name.replace("s2tdpt", "vit")
    return {
        "baseline": {},
        "no-plan": {"schedule.time_steps": f"{last.time_steps}:{round(cost / last.epoch_cost)}"},
        "adamw": {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.05},
        "no-mix": {"augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.mix_probability": 0.0},
        "randaugment": {"augment.randaugment": {"operations": "geometric5"}},
        "ema": {"ema_decay": 0.998},
        "norms": {"norm_batches": 50},
        "ema-norms": {"ema_decay": 0.998, "norm_batches": 50},
        "plif": {"model.options.neuron": "plif"},
        "pool-gradient": {"model.options.pool_gradient": "largest"},
        "no-jump": {"model.options.window": {"jump": False}},
        "mean-attention": {"model.attention": "mean"},
        "vit": {"model.name": twin, "model.options.qk_norm": True, "schedule.time_steps": f"1:{round(cost)}"},
        "distill": {"distill.teacher": str(teacher)},
    }


@dataclass(frozen=True)
class Job:
    """One run: an item with a seed, in its folder; `needs` is the folder of a run that has to be finished before."""

    item: str
    seed: int
    folder: Path
    command: tuple[str, ...]
    needs: Path | None = None

    @property
    def finished(self) -> bool:
        return (self.folder / METRICS).exists()

    @property
    def ready(self) -> bool:
        return self.needs is None or (self.needs / METRICS).exists()


@dataclass
class Running:
    job: Job
    process: subprocess.Popen[bytes]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", metavar="ITEM", help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--recipe", default="two_minutes", help="that the items change")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), metavar="FOLDER", help="of runs and logs")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in the recipe of every run")
    parser.add_argument("--minutes", type=float, help="interrupt what runs then; the same command goes on later")
    parser.add_argument("--devices", nargs="+", help="GPUs by number, or cpu (default: all that are visible)")
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--commit", help="where there is no git (default: $S2TDPT_COMMIT)")
    asked = parser.parse_args(argv)
    try:
        jobs = list(plan(asked))
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    queue = Queue(jobs, asked.devices or visible_devices(), asked)
    return queue.run()


def plan(asked: argparse.Namespace) -> Iterator[Job]:
    """All runs that were asked for, in order, those that are needed first; every recipe is checked before any runs."""
    base = load_recipe(asked.recipe).replace(**parse_overrides(asked.set))
    known = list(items(base, Path()))
    unknown = [item for item in asked.items if item not in known]
    if unknown:
        raise S2tdptError(f"there is no item {unknown[0]!r}: {', '.join(known)}")
    chosen = asked.items or known
    if "distill" in chosen and "vit" not in chosen:
        chosen = ["vit", *chosen]
    for seed in asked.seeds:
        teacher = asked.runs / f"vit-seed{seed}"
        for item in sorted(chosen, key=known.index):
            changes = items(base, teacher)[item]
            base.replace(**changes)
            folder = asked.runs / f"{item}-seed{seed}"
            command = [sys.executable, "-m", "s2tdpt", "train", asked.recipe, "--out", str(folder)]
            command += ["--resume"] if (folder / RECIPE).is_file() else []
            command += ["--seed", str(seed), *(word for change in asked.set for word in ("--set", change))]
            for key, value in changes.items():
                command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
            if asked.data_root:
                command += ["--data-root", asked.data_root]
            yield Job(item, seed, folder, tuple(command), teacher if item == "distill" else None)


def visible_devices() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, or the CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    return [str(index) for index in range(torch.cuda.device_count())] or ["cpu"]


class Queue:
    """The runs that are left, and one process for each device."""

    def __init__(self, jobs: list[Job], devices: list[str], asked: argparse.Namespace) -> None:
        self.asked = asked
        self.left, self.devices = jobs, devices
        self.running: dict[str, Running] = {}
        self.failed: list[Job] = []
        self.stopped = False
        self.deadline = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")

    def run(self) -> int:
        """0 when all is done, 1 if a run failed, 130 if there was no time."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.left or self.running:
                if time.monotonic() > self.deadline:
                    self._stop()
                self._start()
                time.sleep(LOOK_EVERY)
                for device in list(self.running):
                    self._look(device)
        finally:
            for running in self.running.values():  # where the queue itself has failed
                running.process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopped:
            print("interrupted: the same command goes on")
            return 130
        return 1 if self.failed else 0

    def _start(self) -> None:
        for job in [job for job in self.left if job.finished]:
            self.left.remove(job)
            self._take(job)
        failed = [job.folder for job in self.failed]
        for job in [job for job in self.left if job.needs in failed]:
            self.left.remove(job)
            self._fail(job, f"{job.needs} failed")
        for device in self.devices:
            job = next((job for job in self.left if job.ready), None)
            if job is not None and device not in self.running:
                self.left.remove(job)
                self.running[device] = Running(job, self._launch(job, device))

    def _launch(self, job: Job, device: str) -> subprocess.Popen[bytes]:
        environment, command = dict(os.environ), list(job.command)
        if device == "cpu":
            command += ["--device", "cpu"]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = device
        if self.asked.commit:
            environment["S2TDPT_COMMIT"] = self.asked.commit
        log = job.folder.with_name(job.folder.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{job.item}, seed {job.seed} on {device}: {log}", flush=True)
        with log.open("ab") as stream:  # a group of its own: Ctrl-C reaches it through this process alone
            return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)

    def _look(self, device: str) -> None:
        job, code = self.running[device].job, self.running[device].process.poll()
        if code is None:
            return
        del self.running[device]
        if code == 0 and job.finished:
            self._take(job)
        elif not self.stopped:
            self._fail(job, f"exit code {code}, see its log")

    def _take(self, job: Job) -> None:
        words = [str(job.folder), "--ablation", job.item, "--results", str(self.asked.results)]
        if add.main(words + (["--commit", self.asked.commit] if self.asked.commit else [])):
            self._fail(job, "could not be taken in")

    def _fail(self, job: Job, why: str) -> None:
        self.failed.append(job)
        print(f"{job.item}, seed {job.seed} failed: {why}", flush=True)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Time is up. Only noted here: a signal may come between the start of a process and its name in `running`."""
        self.deadline = float("-inf")

    def _stop(self) -> None:
        """No more runs; those under way save a checkpoint and end, at the next signal at once."""
        self.stopped, self.left, self.deadline = True, [], float("inf")
        for running in self.running.values():
            running.process.terminate()


if __name__ == "__main__":
    sys.exit(main())
