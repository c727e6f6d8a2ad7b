"""Runs side by side on the visible devices: a queue of jobs, what they wait for, and what becomes of them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from results import rows
from s2tdpt.errors import S2tdptError
from s2tdpt.training.folder import METRICS

LOOK_EVERY = 0.5  # seconds
Command = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One run in its folder: `train`, then each of `after`, which leave `products`. It has `processes` devices.

    `needs` are the folders of runs that have to be trained before. All commands take `--device cpu`.
    """

    name: str
    folder: Path
    train: Command
    after: tuple[Command, ...] = ()
    products: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    processes: int = 1

    @property
    def trained(self) -> bool:
        return (self.folder / METRICS).exists()

    @property
    def finished(self) -> bool:
        return self.trained and all(file.exists() for file in self.products)

    @property
    def ready(self) -> bool:
        return not self.missing

    @property
    def missing(self) -> list[Path]:
        return [folder for folder in self.needs if not (folder / METRICS).exists()]

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


@dataclass
class _Running:
    job: Job
    devices: list[str]
    command: Command
    process: subprocess.Popen[bytes]
    left: list[Command] = field(default_factory=list)


class Queue:
    """The jobs that are left, and a process for each device that is busy.

    What is finished is left alone; `take(job)` is called for each job that is done, and says whether that went well.
    After `minutes`, or at a signal, what runs is interrupted: it saves a checkpoint, and the same jobs go on later.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        devices: list[str],
        take: Callable[[Job], bool],
        *,
        minutes: float | None = None,
        commit: str | None = None,
    ) -> None:
        self.left, self.devices, self.take, self.commit = list(jobs), devices, take, commit
        self.running: list[_Running] = []
        self.failed: list[Job] = []
        self.trouble = False
        self.stopped = False
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def run(self) -> int:
        """0 when all is done, 1 if something failed, 130 if there was no time."""
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.left or self.running:
                if time.monotonic() > self.deadline:
                    self._stop()
                self._start()
                time.sleep(LOOK_EVERY)
                for running in list(self.running):
                    self._look(running)
        finally:
            for running in self.running:  # where the queue itself has failed
                running.process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.stopped:
            print("interrupted: the same command goes on")
            return 130
        return 1 if self.failed or self.trouble else 0

    def _start(self) -> None:
        for job in [job for job in self.left if job.finished]:
            self.left.remove(job)
            self._take(job)
        failed = [job.folder for job in self.failed]
        for job in list(self.left):
            if lost := [folder for folder in job.missing if folder in failed]:
                self.left.remove(job)
                self._fail(job, f"{lost[0]} failed")
        while job := next((job for job in self.left if job.ready), None):
            busy = [device for running in self.running for device in running.devices]
            free = [device for device in self.devices if device not in busy][: job.processes]
            if len(free) < job.processes:
                return  # later jobs wait too: a small one must not keep a large one waiting for ever
            self.left.remove(job)
            process = self._launch(job, job.train, free)
            self.running.append(_Running(job, free, job.train, process, list(job.after)))

    def _launch(self, job: Job, command: Command, devices: list[str]) -> subprocess.Popen[bytes]:
        environment, words = dict(os.environ), list(command)
        if devices == ["cpu"]:
            words += ["--device", "cpu"]
        else:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
            share = max(1, (os.cpu_count() or 1) // max(1, len(self.devices)))
            environment.setdefault("OMP_NUM_THREADS", str(share))
        if self.commit:
            environment["S2TDPT_COMMIT"] = self.commit
        job.log.parent.mkdir(parents=True, exist_ok=True)
        if command == job.train:
            print(f"{job.name} on {', '.join(devices)}: {job.log}", flush=True)
        with job.log.open("ab") as stream:  # a group of its own: Ctrl-C reaches it through this process alone
            return subprocess.Popen(words, env=environment, stdout=stream, stderr=stream, start_new_session=True)

    def _look(self, running: _Running) -> None:
        job, code = running.job, running.process.poll()
        if code is None:
            return
        training = running.command == job.train
        if code and not training and not self.stopped:  # the run is there all the same
            self.trouble = True
            print(f"{job.name}: {' '.join(running.command[1:])}: exit code {code}, see its log", flush=True)
        trained = job.trained and not (training and code)
        if trained and running.left:
            running.command = running.left.pop(0)
            running.process = self._launch(job, running.command, running.devices)
            return
        self.running.remove(running)
        if self.stopped and code:
            return
        if trained:
            self._take(job)
        else:
            self._fail(job, f"exit code {code}, see its log{_last_error(job.log)}")

    def _take(self, job: Job) -> None:
        if not self.take(job):
            self._fail(job, "could not be taken in")

    def _fail(self, job: Job, why: str) -> None:
        self.failed.append(job)
        print(f"{job.name} failed: {why}", flush=True)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Time is up. Only noted here: a signal may come between the start of a process and its place in `running`."""
        self.deadline = float("-inf")

    def _stop(self) -> None:
        """No more runs; those under way save a checkpoint and end, at the next signal at once."""
        self.stopped, self.left, self.deadline = True, [], float("inf")
        for running in self.running:
            running.left = []
            running.process.terminate()


def _last_error(log: Path) -> str:
    """What the log ends with, if that is an error in one line."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f" ({lines[-1]})" if lines and lines[-1].startswith("error: ") else ""


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, runs: str) -> argparse.Namespace:
    """The command line, with what every command with a queue takes; `S2tdptError` for a device that is not there."""
    parser.add_argument("--runs", type=Path, default=Path(runs), metavar="FOLDER", help="of runs and logs")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in the recipe of every run")
    parser.add_argument("--minutes", type=float, help="interrupt what runs then; the same command goes on later")
    parser.add_argument("--devices", nargs="+", help="GPUs by number, or cpu (default: all that are visible)")
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--commit", help="where there is no git (default: $S2TDPT_COMMIT)")
    asked, visible = parser.parse_args(argv), _visible_devices()
    asked.devices = asked.devices or visible
    for device in asked.devices:
        if device not in (*visible, "cpu"):
            raise S2tdptError(f"--devices {device}: there is no such device here, only {', '.join(visible)}; or cpu")
    return asked


def _visible_devices() -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them, or the CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return named.split(",")
    return [str(index) for index in range(torch.cuda.device_count())] or ["cpu"]
