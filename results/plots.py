"""Draws the runs into docs/img/: training curves, accuracy against energy, accuracy against minutes.

python -m results.plots        (needs the extra `explain`)
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from results import rows
from results.goals import DATA, Goal, Group, Published, groups, read_goals, read_published
from s2tdpt.errors import S2tdptError, require
from s2tdpt.training.folder import LOG

THEIRS, GOAL = "#8a857d", "#3a8f5c"
COLOURS = ("#1f63b0", "#b9560f", "#7d5ba6", "#c23b6b", "#0f8a8a", "#8a6d0f", "#444444", "#5a9bd4")
LINES = {"o": "-", "s": "--", "^": "-."}  # for each marker
SOURCES = "s2tdpt-sources"


@dataclass(frozen=True)
class Picture:
    """What draws it into a figure, and the files under results/, beside the runs' figures, that it is drawn from."""

    draw: Callable[[Any, Path], None]
    patterns: tuple[str, ...]

    def fingerprint(self, results: Path) -> str:
        """Digest of all that the picture shows."""
        runs = rows.read(results / rows.ACCURACY)
        shown = [(*row.group, row.goal, row.seed, row.top1_last, row.energy_mj, row.minutes) for row in runs]
        digest = hashlib.sha256(repr(shown).encode())
        for path in sorted(path for pattern in self.patterns for path in results.glob(pattern)):
            if path.is_relative_to(results / rows.ABLATION_RUNS):
                continue
            digest.update(f"{path.parent.name}/{path.name}:".encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=rows.RESULTS.parent / "docs" / "img", metavar="FOLDER")
    parser.add_argument("--all", action="store_true", help="those too of which nothing has changed")
    asked = parser.parse_args(argv)
    try:
        require("matplotlib", "explain")
        for name, picture in PICTURES.items():
            out = asked.out / f"{name}.png"
            if asked.all or not up_to_date(picture, asked.results, out):
                save(picture, asked.results, out)
                print(f"wrote {out}")
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def save(picture: Picture, results: Path, out: Path) -> None:
    """Draw, and write down in the file what it was drawn from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    picture.draw(figure, results)
    lines = max(len(axes.get_legend_handles_labels()[1]) for axes in figure.axes)
    figure.set_figheight(4.4 + 0.17 * lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={SOURCES: picture.fingerprint(results)})


def described(picture: Path) -> dict[str, str]:
    """What a PNG file says of itself."""
    with Image.open(picture) as image:
        return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}


def up_to_date(picture: Picture, results: Path, out: Path) -> bool:
    """Whether the file `out` was drawn from the figures of today."""
    return out.exists() and described(out).get(SOURCES) == picture.fingerprint(results)


def curves(figure: Any, results: Path) -> None:
    """Accuracy on the evaluation images over the minutes of training; seeds of a recipe share a colour."""
    _over_time(figure, results, lambda epoch: epoch.top1, "test accuracy, %")


def losses(figure: Any, results: Path) -> None:
    """Training loss over the minutes, which every run has of each epoch."""
    for axes in _over_time(figure, results, lambda epoch: epoch.loss, "training loss, each recipe's own", marked=False):
        axes.set_yscale("log")
        axes.set_yticks(ticks := [0.2, 0.3, 0.5, 1, 2, 3, 5], list(map(str, ticks)))
        axes.set_yticks([], minor=True)


def _over_time(
    figure: Any, results: Path, value: Callable[[Epoch], float | None], beside: str, marked: bool = True
) -> list[Any]:
    """Lines over the minutes of epochs, with a marker at each known value, or without; gives the panels."""
    panels: list[Any] = []
    for axes, data, found in _panels(figure, results):
        panels.append(axes)
        for group, style in _styled(found):
            look = style if marked else {"color": style["color"], "linestyle": LINES[style["marker"]]}
            for number, run in enumerate(group.rows):
                epochs = history(results / run.run)
                seen = [(epoch.minutes, shown) for epoch in epochs if (shown := value(epoch)) is not None]
                title = None if number else _title(group)
                axes.plot(*zip(*seen, strict=True), label=title, markersize=3, linewidth=1.4 if marked else 0.9, **look)
                changes = [after.minutes for before, after in pairwise(epochs) if before.time_steps != after.time_steps]
                begun = rows.minutes_before(results / run.run)
                for minutes in [begun, *changes] if begun else changes:
                    axes.axvline(minutes, color=style["color"], linewidth=0.8, linestyle=":")
        _dress(axes, data, "minutes in epochs (dotted: another T, or a run goes on)", beside)
    return panels


@dataclass(frozen=True)
class Epoch:
    """A run's epoch by its log: minutes at its end, T, top-1 in percent where it was measured, training loss."""

    minutes: float
    time_steps: str
    top1: float | None
    loss: float


def history(run: Path) -> list[Epoch]:
    """Every epoch of a run; minutes are counted from the first run that it goes on from (`rows.minutes_before`)."""
    epochs: list[Epoch] = []
    minutes = rows.minutes_before(run)
    with (run / LOG).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            minutes += float(row["seconds"]) / 60
            top1 = row.get("test_top1") or row.get("holdout_top1")
            epochs.append(
                Epoch(minutes, row["time_steps"], 100 * float(top1) if top1 else None, float(row["train_loss"]))
            )
    return epochs


def against_energy(figure: Any, results: Path) -> None:
    """Accuracy against counted energy, with what others have published."""
    for axes, data, found in _panels(figure, results):
        axes.set(xscale="log", xlim=(0.08, 8))
        for group, style in _styled(found):
            energy = group.known(lambda row: row.energy_mj)
            if energy is not None:
                _point(axes, energy.mean, group, style)
        peers = [peer for peer in read_published(results) if peer.data == data]
        _published(axes, [(peer.energy_mj, peer) for peer in peers], "energy")
        for goal in (goal for goal in read_goals(results) if goal.data == data):
            _goal(axes, goal)
        _dress(axes, data, "energy of one image, mJ: operations times published prices (eq. 29)")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])


def against_minutes(figure: Any, results: Path) -> None:
    """Accuracy against minutes of training, with what others have published."""
    for axes, data, found in _panels(figure, results):
        axes.set(xscale="log", xlim=(0.03, 2500))
        for group, style in _styled(found):
            _point(axes, group.spread(lambda row: row.minutes).mean, group, style)
        peers = [peer for peer in read_published(results) if peer.data == data]
        _published(axes, [(peer.minutes, peer) for peer in peers], "training time")
        _dress(axes, data, "minutes of training, without the teacher's")
        axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])


PICTURES = {
    "training-curves": Picture(curves, (f"*/*/{LOG}",)),
    "training-losses": Picture(losses, (f"*/*/{LOG}",)),
    "accuracy-energy": Picture(against_energy, ("published.csv", "goals.csv")),
    "accuracy-minutes": Picture(against_minutes, ("published.csv",)),
}


def _panels(figure: Any, results: Path) -> Iterable[tuple[Any, str, list[Group]]]:
    """A panel for each data set: its axes, its name, and its runs on the test set gathered over seeds."""
    found = groups(row for row in rows.read(results / rows.ACCURACY) if row.evaluated_on == "test")
    names = list(dict.fromkeys(["cifar10", "cifar100", *(group.first.data for group in found)]))
    for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        yield axes, data, [group for group in found if group.first.data == data]


def _styled(found: Sequence[Group]) -> Iterable[tuple[Group, dict[str, str]]]:
    """A colour for each group and, where colours run out, another marker."""
    for number, group in enumerate(found):
        turn, colour = divmod(number, len(COLOURS))
        yield group, {"color": COLOURS[colour], "marker": list(LINES)[turn % len(LINES)]}


def _point(axes: Any, x: float, group: Group, style: dict[str, str]) -> None:
    top1 = group.top1
    axes.errorbar(x, top1.mean, yerr=top1.deviation, linestyle="", capsize=3, label=_title(group), zorder=3, **style)


def _published(axes: Any, peers: Sequence[tuple[float | None, Published]], unknown: str) -> None:
    """Published points hollow and grey, named; where the paper does not give x, a line at its accuracy."""
    shown = [(x, peer) for x, peer in peers if x is not None]
    for number, (x, peer) in enumerate(shown):
        axes.plot(x, peer.top1, "D", color=THEIRS, fillstyle="none", label=None if number else "published by others")
        crowded = any(x < other < 4 * x and abs(peer.top1 - p.top1) < 1 for other, p in shown)
        left = crowded or 8 * x > axes.get_xlim()[1]
        axes.annotate(f"{peer.name}\n({peer.what})", (x, peer.top1), (-7 if left else 7, 0), va="center", fontsize=7.5,
                      textcoords="offset points", ha="right" if left else "left", color=THEIRS)  # fmt: skip
    paper = next((peer for x, peer in peers if x is None and peer.name.startswith("S²TDPT")), None)
    if paper is not None:
        label = f"S²TDPT, published: {paper.top1:.2f} % ({unknown} not stated)"
        axes.axhline(paper.top1, color=THEIRS, linewidth=1, linestyle="--", label=label, zorder=1)


def _goal(axes: Any, goal: Goal) -> None:
    if goal.top1 is None or goal.energy_mj is None:
        return
    corner = [0.01, goal.energy_mj, goal.energy_mj], [goal.top1, goal.top1, goal.top1 + 3]
    axes.plot(*corner, color=GOAL, linewidth=1.5, zorder=0, label=f"goal of row {goal.goal}: left of and above it")


def _title(group: Group) -> str:
    return f"{group.first.title}: {group.top1.text()} %" + (f" ({group.top1.n} seeds)" if group.top1.n > 1 else "")


def _dress(axes: Any, data: str, below: str, beside: str = "test accuracy after the last epoch, %") -> None:
    axes.set_title(DATA.get(data, data), loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(below, fontsize=9)
    axes.set_ylabel(beside, fontsize=9)
    axes.margins(y=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.01, -0.13), frameon=False, fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
