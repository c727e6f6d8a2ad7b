"""Line and bar charts as inline SVG that follows the page's light or dark colours. Drawn by matplotlib."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...errors import require
from .page import Html

# Colours that stand for the page's CSS variables until the SVG is written.
INK, MUTED, LINE, SURFACE = "#010201", "#010202", "#010203", "#010204"
SERIES = ("#010205", "#010206", "#010207", "#010208")
BAND = "#010209"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    SURFACE: "surface",
    **{colour: f"series-{index + 1}" for index, colour in enumerate(SERIES)},
    BAND: "band",
}
_numbers = itertools.count(1)

Curve = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


class Chart:
    """One set of axes in the page's style; `svg(label)` ends it."""

    def __init__(self, width: float = 4.6, height: float = 2.7) -> None:
        self._matplotlib = require("matplotlib", "explain")
        self.figure = require("matplotlib.figure", "explain").Figure(figsize=(width, height), layout="constrained")
        self.axes: Any = self.figure.subplots()
        self.figure.patch.set_alpha(0)
        self.axes.patch.set_alpha(0)
        for name, spine in self.axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(LINE)
        self.axes.tick_params(colors=MUTED, labelsize=8.5, length=3, color=LINE)
        self.axes.grid(axis="y", color=LINE, linewidth=0.6)
        self.axes.set_axisbelow(True)

    def labels(self, x: str, y: str) -> None:
        """Axis labels."""
        self.axes.set_xlabel(x, color=MUTED, fontsize=9)
        self.axes.set_ylabel(y, color=MUTED, fontsize=9)

    def legend(self, **options: Any) -> None:
        """A frameless legend in the page's ink."""
        self.axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, **options)

    def svg(self, label: str) -> Html:
        """The chart as an inline `<svg>` with an accessible name."""
        buffer = io.StringIO()
        with self._matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "s2tdpt"}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> Html:
    """Only the drawing itself, with unique ids, the page's font and colours, and no namespaces (HTML needs none)."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    number = next(_numbers)
    svg = re.sub(r'\bid="', f'id="c{number}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>c{number}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"\n\s*", "\n", svg)
    return Html(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1).strip())


def line_chart(
    curves: Sequence[Curve], x: str, y: str, label: str, *, switches: Mapping[float, str] | None = None
) -> Html:
    """Named curves over a common axis; `switches` are vertical lines with a word each."""
    chart = Chart(3.7, 2.4)
    for index, (name, xs, ys) in enumerate(curves):
        colour, style = SERIES[index % len(SERIES)], ("-", (0, (4, 2)))[index // len(SERIES) % 2]
        chart.axes.plot(xs, ys, color=colour, linestyle=style, linewidth=1.8, label=name, solid_capstyle="round")
    for where, word in (switches or {}).items():
        chart.axes.axvline(where, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        over = chart.axes.get_xaxis_transform()
        chart.axes.text(where, 1.0, f" {word}", color=MUTED, fontsize=8, va="bottom", ha="center", transform=over)
    chart.axes.xaxis.get_major_locator().set_params(integer=True)
    chart.labels(x, y)
    if len(curves) > 1:
        chart.legend()
    return chart.svg(label)


def bar_chart(values: Mapping[str, float], x: str, label: str, *, groups: Mapping[str, str]) -> Html:
    """Horizontal bars, first on top; `groups` gives each bar the legend entry that colours it."""
    chart = Chart(4.6, 0.7 + 0.19 * len(values))
    for index, group in enumerate(dict.fromkeys(groups.values())):
        rows = [row for row, name in enumerate(values) if groups[name] == group]
        lengths = [value for name, value in values.items() if groups[name] == group]
        chart.axes.barh(rows, lengths, height=0.68, color=SERIES[-1 - index % len(SERIES)], label=group)
    chart.axes.set_yticks(range(len(values)), list(values), fontsize=8)
    chart.axes.set_ylim(len(values) - 0.4, -0.6)
    _rows_only(chart)
    chart.labels(x, "")
    chart.legend()
    return chart.svg(label)


def histogram(x: Sequence[int], y: Sequence[float], xlabel: str, ylabel: str, label: str) -> Html:
    """Bars over whole numbers: those above 0 in the colour of potentiation, the others of depression."""
    chart = Chart(4.6, 3.0)
    chart.axes.bar(x, y, width=0.8, color=[SERIES[0] if m > 0 else SERIES[1] for m in x])
    chart.axes.xaxis.get_major_locator().set_params(integer=True)
    chart.labels(xlabel, ylabel)
    return chart.svg(label)


def rate_chart(rates: Mapping[str, float], special: set[str], label: str, band: tuple[float, float]) -> Html:
    """Firing rates (fractions) as dots on a logarithmic axis in per cent, `band` shaded, `special` rows in colour.

    A layer that never fires sits on the left edge as an open dot.
    """
    chart = Chart(4.6, 0.7 + 0.2 * len(rates))
    floor = 0.05
    chart.axes.axvspan(band[0] * 100, band[1] * 100, color=BAND, linewidth=0)
    for row, (name, rate) in enumerate(rates.items()):
        colour = SERIES[0] if name in special else MUTED
        where = max(rate * 100, floor)
        chart.axes.plot([floor, where], [row, row], color=colour, linewidth=1, alpha=0.6)
        face = colour if rate > 0 else "none"
        chart.axes.plot([where], [row], "o", color=colour, markerfacecolor=face, markersize=5, clip_on=False)
    chart.axes.set_xscale("log")
    chart.axes.set_xlim(floor, 100)
    ticks = [0.1, 0.5, 2, 10, 50]
    chart.axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    chart.axes.set_xticks([], minor=True)
    chart.axes.set_yticks(range(len(rates)), list(rates), fontsize=8)
    chart.axes.set_ylim(len(rates) - 0.4, -0.6)
    _rows_only(chart)
    chart.labels("spikes per neuron and step", "")
    return chart.svg(label)


def window_chart(
    differences: Sequence[float], weights: Sequence[Sequence[float]], offsets: Sequence[float], label: str
) -> Html:
    """Attention weight against the spike-count difference m, one stepless curve a head, potentiation in colour."""
    chart = Chart(4.6, 3.0)
    positive = [m > 0 for m in differences]
    split = positive.index(True)
    for curve in weights:
        chart.axes.plot(differences[:split], curve[:split], ".-", color=SERIES[1], linewidth=1.4, markersize=4)
        chart.axes.plot(differences[split:], curve[split:], ".-", color=SERIES[0], linewidth=1.4, markersize=4)
    for offset in dict.fromkeys(offsets):
        chart.axes.axhline(offset, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    chart.axes.axvline(0.5, color=LINE, linewidth=0.8)
    low, high = min(map(min, weights)), max(map(max, weights))
    pad = 0.08 * ((high - low) or 1)
    chart.axes.set_ylim(low - pad, high + 2.5 * pad)
    for place, align, text, colour in (
        (0.01, "left", "key fired first: depression", SERIES[1]),
        (0.99, "right", "query fired first: potentiation", SERIES[0]),
    ):
        chart.axes.text(
            place, 0.99, text, color=colour, fontsize=8.5, ha=align, va="top", transform=chart.axes.transAxes
        )
    chart.labels("m = query's spikes − key's spikes", "attention weight w")
    return chart.svg(label)


def curve_with_spread(
    x: Sequence[float], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], label: str, xlabel: str
) -> Html:
    """Mean curves with a shaded spread (mean, half width) each: probability over the fraction of patches."""
    chart = Chart()
    for index, (name, (mean, spread)) in enumerate(curves.items()):
        colour = SERIES[0] if index == 0 else MUTED
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        chart.axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        chart.axes.plot(x, mean, color=colour, linewidth=1.8, label=name, linestyle="-" if index == 0 else (0, (4, 2)))
    chart.axes.set_ylim(0, 1.02)
    chart.axes.set_xlim(0, 1)
    chart.labels(xlabel, "probability of the class")
    chart.legend()
    return chart.svg(label)


def raster_chart(panels: Mapping[str, Any], label: str) -> Html:
    """Spike rasters side by side: `panels` maps a title to spikes [T, neurons]; time runs to the right."""
    columns = len(panels)
    chart = Chart(max(4.6, 1.1 * columns), 2.9)
    chart.figure.clf()
    grid = chart.figure.subplots(1, columns, squeeze=False)[0]
    for axes, (title, spikes) in zip(grid, panels.items(), strict=True):
        steps, neurons = spikes.shape
        time, neuron = spikes.nonzero(as_tuple=True)
        axes.vlines((time + 1).tolist(), (neuron + 0.1).tolist(), (neuron + 0.9).tolist(), color=SERIES[0], linewidth=2)
        axes.set_xlim(0.4, steps + 0.6)
        axes.set_ylim(0, max(1, neurons))
        every = math.ceil(steps / 8)
        axes.set_xticks(range(1, steps + 1, every))
        axes.set_title(title, fontsize=8.5, color=INK)
        axes.tick_params(colors=MUTED, labelsize=8, length=2, color=LINE)
        axes.patch.set_alpha(0)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(LINE)
        if axes is grid[0]:
            axes.set_ylabel("neuron", color=MUTED, fontsize=9)
        else:
            axes.set_yticks([])
        axes.set_xlabel("step", color=MUTED, fontsize=9)
    return chart.svg(label)


def _rows_only(chart: Chart) -> None:
    chart.axes.grid(False)
    chart.axes.grid(axis="x", color=LINE, linewidth=0.6)
    chart.axes.spines["left"].set_visible(False)
    chart.axes.tick_params(axis="y", length=0, labelcolor=INK)
