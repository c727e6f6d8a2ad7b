"""Rows of results: one figure beside its peer and the physical limit, appended to benchmarks/results/NAME.csv."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Case, Figure
from benchmarks.limits import Floor
from benchmarks.timing import Contestant, Seconds, alternate

PACKAGES = ("torch", "triton", "numpy", "spikingjelly")


@dataclass(frozen=True)
class Row:
    """`ratio`: how many times better than the peer. `limit`: the best value that bytes and operations allow at the
    copy bandwidth and product rate measured in the same run; `distance`: how many times away from it.
    """

    date: str
    commit: str
    hardware: str
    versions: str
    command: str
    what: str
    unit: str
    median: float
    spread: float
    peer: str = ""
    peer_median: float | None = None
    peer_spread: float | None = None
    ratio: float | None = None
    gigabytes: float | None = None
    gigaoperations: float | None = None
    copy_gigabytes_per_second: float | None = None
    product_teraoperations_per_second: float | None = None
    limit: float | None = None
    distance: float | None = None


class Results:
    """Prints and keeps each row at once: a benchmark that is stopped loses none."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.path = case.results / f"{case.name}.csv" if case.results else None
        self.common: dict[str, Any] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
            "commit": commit(),
            "hardware": hardware(case.device),
            "versions": versions(),
            "command": case.command,
        }

    def add(
        self,
        what: str,
        ours: Figure,
        peer: str = "",
        theirs: Figure | None = None,
        *,
        floor: Floor | None = None,
        limit: float | None = None,
    ) -> None:
        """A figure, its peer's, and the limit: `floor`'s, or a number in the figure's unit."""
        row = Row(**self.common, what=what, unit=ours.unit, median=_short(ours.median), spread=_short(ours.spread))
        if theirs is not None:
            row = replace(row, peer=peer, peer_median=_short(theirs.median), peer_spread=_short(theirs.spread))
            row = replace(row, ratio=_short(ours.times_better_than(theirs)))
        if floor is not None:
            limit = floor.best(ours.unit)
            row = replace(
                row,
                gigabytes=_short(floor.bytes / 1e9),
                gigaoperations=_short(floor.operations / 1e9),
                copy_gigabytes_per_second=_short(floor.ceilings.bytes_per_second / 1e9),
                product_teraoperations_per_second=_short(floor.ceilings.operations_per_second / 1e12),
            )
        if limit is not None:
            away = 1 / ours.times_better_than(Figure(limit, 0.0, ours.unit))
            row = replace(row, limit=_short(limit), distance=_short(away))
        print(line(row), flush=True)
        if self.path is not None:
            _append(self.path, row)

    def race(
        self, ours: Sequence[Contestant], peer: Contestant | None, figure: Callable[[Seconds], Figure], *floors: Floor
    ) -> None:
        """Time them in turns; a row of speed for each of ours against the peer, and one of memory where it is known.

        One limit for all of ours, or one for each.
        """
        runs = [contestant.run for contestant in (*ours, *([peer] if peer else ()))]
        figures = [figure(seconds) for seconds in alternate(self.case, *runs)]
        name, theirs, held = (peer.name, figures[-1], peer.memory) if peer else ("", None, None)
        limits = floors if len(floors) == len(ours) else floors * len(ours)
        for contestant, speed, floor in zip(ours, figures, limits, strict=False):
            self.add(contestant.name, speed, name, theirs, floor=floor)
        for contestant in ours:
            if contestant.memory is not None:
                self.add(f"{contestant.name}: peak memory", contestant.memory, name, held)


def read(path: Path) -> list[Row]:
    """All rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    numbers = {field.name for field in fields(Row) if "float" in str(field.type)}

    def parsed(row: dict[str, str]) -> Row:
        values: dict[str, Any] = {k: (float(v) if v else None) if k in numbers else v for k, v in row.items()}
        return Row(**values)

    with path.open(newline="", encoding="utf-8") as file:
        return [parsed(row) for row in csv.DictReader(file)]


def line(row: Row) -> str:
    """A row for people."""
    text = f"{row.what:<68} {row.median:>10,.6g} ±{row.spread:<7,.3g} {row.unit:<9}"
    if row.ratio is not None:
        text += f" {row.ratio:6.2f}x {row.peer} ({row.peer_median:,.6g})"
    if row.distance is not None:
        text += f"  limit {row.limit:,.4g}, {row.distance:.2f}x away"
    return text


def table(rows: Iterable[Row]) -> str:
    return "\n".join(line(row) for row in rows)


def _append(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def commit() -> str:
    """`S2TDPT_COMMIT` where that is set (a copy without history), else the checkout's, + where files differ from it."""
    if named := os.environ.get("S2TDPT_COMMIT"):
        return named
    try:
        ask = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        answer = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} x {os.environ.get('WORLD_SIZE', 1)}"
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    models = [entry.partition(":")[2].strip() for entry in text.splitlines() if entry.startswith("model name")]
    extras = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in text]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name} ({' '.join(extras) or 'no AVX-512'}), {torch.get_num_threads()} threads"


def versions() -> str:
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found.append(f"CUDA {torch.version.cuda}")
    return ", ".join(found)
