"""What the runs of one recipe reach together, what was to be reached, and what others have published."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results.rows import RESULTS, Row

FIRING_BAND = (0.005, 0.5)
"""Each attention neuron has to fire within it: below, attention does nothing, above, it tells nothing apart."""
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals: accuracies in percent, energy in mJ an image; the recipe that is meant for it."""

    goal: str
    data: str
    what: str
    seeds: int
    top1: float | None
    top1_aim: float | None
    energy_mj: float | None
    energy_aim: float | None
    recipe: str = ""


@dataclass(frozen=True)
class Published:
    """A peer's figure as its source states it; `what`: the paper, a log, or somebody's re-run."""

    data: str
    name: str
    top1: float
    energy_mj: float | None
    minutes: float | None
    hardware: str
    what: str
    source: str


@dataclass(frozen=True)
class Spread:
    """Mean, and sample deviation where there are two or more."""

    mean: float
    deviation: float | None
    n: int

    def text(self, digits: int = 2) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def top1(self) -> Spread:
        """Percent, of the weights after the last epoch."""
        return self.spread(lambda row: 100 * row.top1_last)

    @property
    def handed_out(self) -> Spread:
        """Percent, of the weights that the runs hand out: their average where there is one."""
        return self.spread(lambda row: 100 * row.top1)

    def spread(self, value: Callable[[Row], float]) -> Spread:
        return spread([value(row) for row in self.rows])

    def known(self, value: Callable[[Row], float | None]) -> Spread | None:
        """The spread over those runs of which the value is known; None if of none."""
        values = [v for v in map(value, self.rows) if v is not None]
        return spread(values) if values else None

    @property
    def attention(self) -> list[float]:
        """Firing rate of each block's attention neuron, mean over the runs."""
        rates = [row.attention_firing_rate for row in self.rows if row.attention_firing_rate]
        return [statistics.fmean(block) for block in zip(*rates, strict=True)]


def spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows gathered by what they share, in their order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return [Group(tuple(members)) for members in found.values()]


def verdict(goal: Goal, group: Group) -> str:
    """Whether the mean over the seeds reaches the goal, and by how much it does not."""
    notes = []
    if goal.top1 is not None:
        notes.append(_compare("accuracy", group.top1.mean - goal.top1, goal.top1_aim, group.top1.mean, "points"))
    if goal.energy_mj is not None:
        energy = group.known(lambda row: row.energy_mj)
        if energy is None:
            notes.append("energy not measured")
        else:
            aim = None if goal.energy_aim is None else -goal.energy_aim
            notes.append(_compare("energy", goal.energy_mj - energy.mean, aim, -energy.mean, "mJ"))
    if not notes:
        return "reported"
    if len(notes) == 1:
        notes[0] = notes[0].removeprefix("accuracy ")
    if group.top1.n < goal.seeds:
        notes.append(f"{group.top1.n} of {goal.seeds} seeds")
    if outside_band(group.attention):
        notes.append("**an attention neuron fires outside 0.5 to 50 %**")
    return ", ".join(notes)


def outside_band(rates: Iterable[float]) -> list[float]:
    """The rates outside `FIRING_BAND`."""
    return [rate for rate in rates if not FIRING_BAND[0] <= rate <= FIRING_BAND[1]]


def read_goals(root: Path = RESULTS) -> list[Goal]:
    """goals.csv; nothing where there is none."""
    return [
        Goal(
            goal=row["goal"],
            data=row["data"],
            what=row["what"],
            seeds=int(row["seeds"]),
            top1=_number(row["top1"]),
            top1_aim=_number(row["top1_aim"]),
            energy_mj=_number(row["energy_mj"]),
            energy_aim=_number(row["energy_aim"]),
            recipe=row["recipe"],
        )
        for row in _table(root / "goals.csv")
    ]


def read_published(root: Path = RESULTS) -> list[Published]:
    return [
        Published(
            data=row["data"],
            name=row["name"],
            top1=float(row["top1"]),
            energy_mj=_number(row["energy_mj"]),
            minutes=_number(row["minutes"]),
            hardware=row["hardware"],
            what=row["what"],
            source=row["source"],
        )
        for row in _table(root / "published.csv")
    ]


def _compare(what: str, ahead: float, aim: float | None, value: float, unit: str) -> str:
    """`ahead`: by how much the goal is passed; `value` and `aim` the larger the better."""
    if ahead < -1e-9:
        return f"{what} **missed** by {-ahead:.{3 if unit == 'mJ' else 2}f} {unit}"
    if aim is None:
        return f"{what} **met**"
    return f"{what} **met**, aim {'met too' if value >= aim - 1e-9 else 'missed'}"


def _table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text else None
