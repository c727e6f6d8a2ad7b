"""Draws the latest results, ours beside the peers, into docs/img/benchmarks.png."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.rows import Row, read
from s2tdpt.errors import InputError, S2tdptError, require

PICTURE = Path(__file__).parent.parent / "docs" / "img" / "benchmarks.png"
OURS, PEER, LIMIT = "#1f63b0", "#a9a49c", "#b9560f"
LINES = {"flash": "#a9a49c", "cuDNN": "#d0a24c", "dense": "#7d5ba6"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE")
    asked = parser.parse_args(argv)
    try:
        draw(asked.results, asked.out)
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {asked.out}")
    return 0


def draw(results: Path, out: Path) -> None:
    """One panel for each figure that has rows."""
    require("matplotlib", "explain")
    from matplotlib.figure import Figure

    wanted: dict[str, tuple[str, str, Callable[[Any, list[Row]], None]]] = {
        "training, images/s": ("train_step", "images/s", bars),
        "training, peak memory (GiB)": ("train_step", "GiB", bars),
        "inference, images/s": ("inference", "images/s", bars),
        "CPU evaluation, images/s": ("cpu_inference", "images/s", bars),
        "training, images/s by GPUs": ("data_parallel", "images/s", bars),
        "STDP attention, forward + backward": ("stdp_attention", "ms", curves),
    }
    panels = [
        (title, draw_panel, rows)
        for title, (name, unit, draw_panel) in wanted.items()
        if (rows := latest(read(results / f"{name}.csv"), unit))
    ]
    if not panels:
        raise InputError(f"there are no results in {results}: run a benchmark first")
    beside = [panel for panel in panels if panel[1] is bars]
    below = [panel for panel in panels if panel[1] is curves]
    half = (len(beside) + 1) // 2
    figure = Figure(figsize=(11, 2.4 * half + 3.2 * len(below)), layout="constrained")
    grid = figure.add_gridspec(half + len(below), 2, height_ratios=[2.4] * half + [3.2] * len(below))
    places = [grid[i // 2, i % 2] for i in range(len(beside))] + [grid[half + i, :] for i in range(len(below))]
    for place, (title, draw_panel, rows) in zip(places, beside + below, strict=True):
        axes = figure.add_subplot(place)
        draw_panel(axes, rows)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=14)
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def latest(rows: list[Row], unit: str) -> list[Row]:
    """Of each comparison the row written last."""
    return list({(row.what, row.peer): row for row in rows if row.unit == unit}.values())


def bars(axes: Any, rows: list[Row]) -> None:
    """A bar each for ours and for every peer, and the physical limit."""
    mine = {label(row.what): (row.median, row.spread, OURS) for row in rows}
    theirs = {row.peer: (row.peer_median, row.peer_spread, PEER) for row in rows if row.peer_median is not None}
    names, values = zip(*[*theirs.items(), *mine.items()], strict=True)
    medians, spreads, colours = zip(*values, strict=True)
    axes.barh(names, medians, xerr=[s / 2 for s in spreads], color=colours, height=0.65)
    for place, (median, spread) in enumerate(zip(medians, spreads, strict=True)):
        axes.annotate(f"{median:,.4g}" if median < 1000 else f"{median:,.0f}", (median + spread / 2, place), (6, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    limit = max((row.limit for row in rows if row.limit is not None), default=0.0)
    if limit > max(medians):  # one that a row passes is that of another precision
        axes.axvline(limit, color=LIMIT, linestyle="--")
        axes.annotate(f"limit {limit:,.0f}", (limit, 1.0), (0, 2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", fontsize=8, color=LIMIT)  # fmt: skip
    axes.set_xlim(0, 1.22 * max(*medians, limit))
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", length=0)


def label(what: str) -> str:
    variant = what.partition(", ")[2].removesuffix(": peak memory")
    return f"s2tdpt, {variant}" if variant else "s2tdpt"


def curves(axes: Any, rows: list[Row]) -> None:
    """Milliseconds against tokens, both axes logarithmic."""
    lengths = [int(re.findall(r"N=(\d+)", row.what)[0]) for row in rows]
    mine = sorted(dict(zip(lengths, rows, strict=True)).items())
    axes.plot([n for n, _ in mine], [row.median for _, row in mine], "o-", color=OURS, label="STDP attention")
    for name in dict.fromkeys(row.peer for row in rows if row.peer):
        points = sorted((n, row.peer_median) for n, row in zip(lengths, rows, strict=True) if row.peer == name)
        colour = next((c for key, c in LINES.items() if key in name), None)
        axes.plot(*zip(*points, strict=True), ".-", color=colour, label=name)
    axes.plot([n for n, _ in mine], [row.limit for _, row in mine], "--", color=LIMIT, label="limit")
    axes.set(xscale="log", yscale="log", xlabel="tokens N (B·N = 65,536)", ylabel="ms")
    axes.set_xticks([n for n, _ in mine], [f"{n:,}" for n, _ in mine], minor=False)
    axes.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.42))


if __name__ == "__main__":
    sys.exit(main())
