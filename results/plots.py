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
from pathlib import Path
from typing import Any

from PIL import Image

from results import rows
from results.goals import DATA, Goal, Group, Published, groups, read_goals, read_published
from s2tdpt.errors import S2tdptError, require
from s2tdpt.training.folder import LOG

THEIRS, GOAL = "#8a857d", "#3a8f5c"
COLOURS = ("#1f63b0", "#b9560f", "#7d5ba6", "#c23b6b", "#0f8a8a", "#8a6d0f", "#444444", "#5a9bd4")
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
    for axes, data, found in _panels(figure, results):
        for group, colour in zip(found, COLOURS * len(found), strict=False):
            for number, run in enumerate(group.rows):
                steps = history(results / run.run)
                seen = [(minutes, value) for minutes, _, value in steps if value is not None]
                title = _title(group) if not number else None
                axes.plot(*zip(*seen, strict=True), "o-", color=colour, markersize=3, linewidth=1.4, label=title)
                begun = rows.minutes_before(results / run.run)
                switch = begun or next((m for m, t, _ in steps if t != steps[0][1]), None)
                if switch is not None:
                    axes.axvline(switch, color=colour, linewidth=0.8, linestyle=":")
        _dress(
            axes,
            data,
            "minutes, without the teacher's (dotted: T changes, or a run goes on from another's weights)",
            "test accuracy, %",
        )


def history(run: Path) -> list[tuple[float, str, float | None]]:
    """(minutes since the start, T, top-1 in percent where it was measured) of every epoch (`rows.minutes_before`)."""
    steps: list[tuple[float, str, float | None]] = []
    minutes = rows.minutes_before(run)
    with (run / LOG).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            minutes += float(row["seconds"]) / 60
            top1 = row.get("test_top1") or row.get("holdout_top1")
            steps.append((minutes, row["time_steps"], 100 * float(top1) if top1 else None))
    return steps


def against_energy(figure: Any, results: Path) -> None:
    """Accuracy against counted energy, with what others have published."""
    for axes, data, found in _panels(figure, results):
        axes.set(xscale="log", xlim=(0.08, 8))
        for group, colour in zip(found, COLOURS * len(found), strict=False):
            energy = group.known(lambda row: row.energy_mj)
            if energy is not None:
                _point(axes, energy.mean, group, colour)
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
        for group, colour in zip(found, COLOURS * len(found), strict=False):
            _point(axes, group.spread(lambda row: row.minutes).mean, group, colour)
        peers = [peer for peer in read_published(results) if peer.data == data]
        _published(axes, [(peer.minutes, peer) for peer in peers], "training time")
        _dress(axes, data, "minutes of training, without the teacher's")
        axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])


PICTURES = {
    "training-curves": Picture(curves, (f"*/*/{LOG}",)),
    "accuracy-energy": Picture(against_energy, ("published.csv", "goals.csv")),
    "accuracy-minutes": Picture(against_minutes, ("published.csv",)),
}


def _panels(figure: Any, results: Path) -> Iterable[tuple[Any, str, list[Group]]]:
    """A panel for each data set: its axes, its name, and its runs on the test set gathered over seeds."""
    found = groups(row for row in rows.read(results / rows.ACCURACY) if row.evaluated_on == "test")
    names = list(dict.fromkeys(["cifar10", "cifar100", *(group.first.data for group in found)]))
    for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        yield axes, data, [group for group in found if group.first.data == data]


def _point(axes: Any, x: float, group: Group, colour: str) -> None:
    top1 = group.top1
    axes.errorbar(x, top1.mean, yerr=top1.deviation, fmt="o", color=colour, capsize=3, label=_title(group), zorder=3)


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
