"""The report's figures that were measured before: summary, training curves, energy; and how the report was made."""

from __future__ import annotations

import datetime
import itertools
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import charts, page
from .material import Material

BAND = (0.005, 0.5)  # an attention neuron that fires less does nothing, one that fires more tells nothing

LIMITS = (
    "STDP attention compares how many features of a query and a key fire, not which: queries with equal counts read "
    "the same mixture of values.",
    "Grad-CAM at the last block is the classic class activation map, whatever attention did before it: read the maps "
    "at the attention outputs beside it. Gradients pass through surrogates, not through the spikes themselves.",
    "Attention maps and rollout show weights. Values that do not fire are multiplied by them all the same, so a bright "
    "key may carry nothing.",
    "Deletion and insertion show the model images unlike any it was trained on; only the distance to the random "
    "ranking means something.",
    "Energy is operations times the price of an operation in a published table, not a measurement on hardware.",
    "Figures are of this one model. Differences below the spread between seeds say nothing.",
)


def summary(m: Material) -> page.Html:
    """Figures at a glance; those that are not known are left out."""
    items: list[tuple[str, str, str]] = []
    top1, ann_top1 = first(m.metrics, "test_top1", "top1"), first(m.ann_metrics, "test_top1", "top1")
    ann_top1 = first(m.metrics, "ann_test_top1") if ann_top1 is None else ann_top1
    if top1 is not None:
        n = first(m.metrics, "test_n", "n")
        notes = [f"{n:,.0f} test images" if n else "", f"ANN twin {percent(ann_top1)}" if ann_top1 is not None else ""]
        items.append(("Test accuracy", percent(top1), " · ".join(filter(None, notes))))
    energy = _energy_of(m.energy, m.metrics, "energy_mj")
    ann_energy = _energy_of(m.ann_energy, m.ann_metrics, "energy_mj")
    ann_energy = first(m.metrics, "ann_energy_mj") if ann_energy is None else ann_energy
    if energy is not None:
        note = "by counted operations"
        if ann_energy:
            note = f"ANN twin {millijoules(ann_energy)}: {100 * (energy / ann_energy - 1):+.0f} %".replace("-", "−")
        items.append(("Energy per image", millijoules(energy), note))
    rate = first(m.metrics, "mean_firing_rate")
    if rate is not None:
        items.append(("Mean firing rate", percent(rate), "spikes per neuron and step"))
    rates = m.metrics.get("attention_firing_rate")
    if rates:
        inside = sum(BAND[0] <= value <= BAND[1] for value in rates)
        span = percent(min(rates)) if len(rates) == 1 else f"{100 * min(rates):.1f}–{100 * max(rates):.1f}\u00a0%"
        items.append(("Attention neurons", span, f"{inside} of {len(rates)} blocks between 0.5 and 50\u00a0%"))
    seconds = first(m.metrics, "train_seconds")
    if seconds is not None:
        items.append(("Training", f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.1f} min", ""))
    if m.model is not None:
        steps = int(getattr(m.model, "time_steps", 1))
        weights = sum(parameter.numel() for parameter in m.model.parameters())
        items.append(("Parameters", f"{weights:,}", f"{steps} time step{'s' if steps > 1 else ''}"))
    return page.cards(items)


def training(m: Material) -> page.Html:
    """Loss and accuracy over epochs, with the switches between numbers of time steps."""
    rows = [row for row in m.history if number(row.get("epoch")) is not None]
    steps = [(number(row["epoch"]) or 0.0, number(row.get("time_steps"))) for row in rows]
    switches = {
        later[0]: f"T={later[1]:.0f}"
        for earlier, later in itertools.pairwise(steps)
        if later[1] is not None and earlier[1] != later[1]
    }
    drawn = []
    for title, ending, unit in (
        ("Loss", "loss", ""),
        ("Accuracy", "top1", "%"),
        ("Attention neurons' firing rate", "attention_firing_rate", "%"),
        ("Learning rate", "lr", ""),
    ):
        curves = []
        for key in dict.fromkeys(key for row in rows for key in row if str(key).endswith(ending)):
            points = [(number(row["epoch"]) or 0.0, number(row.get(key))) for row in rows]
            known = [(x, y * (100 if unit else 1)) for x, y in points if y is not None]
            if known:
                curves.append((str(key), [x for x, _ in known], [y for _, y in known]))
        if curves and len(drawn) < 3:
            last = "; ".join(f"{name} ends at {ys[-1]:.4g}{unit and ' ' + unit}" for name, _, ys in curves)
            chart = charts.line_chart(curves, "epoch", unit, f"{title} over epochs. {last}.", switches=switches)
            drawn.append(page.figure(chart, f"{title}: {last}."))
    told = "Dashed lines mark a switch to another number of time steps T." if switches else "One value an epoch."
    return page.join([page.paragraph(told, "lead"), page.charts(drawn)])


def energy(m: Material) -> page.Html:
    """Energy by layer as bars and as a table, the tensors that are not binary, and the counting rules."""
    report = m.energy
    assert report is not None
    prices = report["cost_table"]
    lead = (
        f"{millijoules(report['energy_mj'])} per image by the cost table “{prices['name']}”, all time steps together."
    )
    if m.ann_energy is not None:
        lead += f" The ANN twin of the same geometry takes {millijoules(m.ann_energy['energy_mj'])}."
    parts = [page.paragraph(lead, "lead"), page.charts([_energy_chart(report["layers"]), _edges(report)])]
    rows = [
        (
            layer["name"],
            " × ".join(layer["operands"]),
            f"{layer['nominal_macs'] / 1e6:,.3f}",
            percent(layer["rate"]),
            f"{layer['counts']['sops'] / 1e6:,.3f}",
            f"{(layer['counts']['macs'] + layer['counts']['integer_macs']) / 1e6:,.3f}",
            f"{layer['energy_mj'] * 1e3:.4g}",
        )
        for layer in report["layers"]
    ]
    head = ("layer", "operands", "MACs, M", "density", "additions, M", "multiplications, M", "µJ")
    parts.append(page.details("All figures by layer", page.table(head, rows, "Per image, all steps.", numbers=5)))
    if report.get("uncounted"):
        parts.append(page.paragraph(f"Not counted, the counter cannot see into: {', '.join(report['uncounted'])}."))
    rules = [*report["rules"], f"Prices: {prices['source']}."]
    parts.append(page.details("How it was counted", page.bullets(rules)))
    return page.join(parts)


def _energy_chart(layers: Sequence[Mapping[str, Any]]) -> page.Html:
    bars: dict[str, float] = {}
    groups: dict[str, str] = {}
    for layer in layers:  # a layer may hold several products
        name, counts = str(layer["name"]), layer["counts"]
        bars[name] = bars.get(name, 0.0) + layer["energy_mj"] * 1e3
        multiplies = counts["macs"] or counts["integer_macs"]
        groups[name] = "multiplications" if multiplies else "additions set off by spikes"
    largest = max(bars, key=lambda name: bars[name], default="none")
    label = f"Energy of {len(bars)} layers; the largest is {largest} with {bars.get(largest, 0.0):.3g} µJ"
    chart = charts.bar_chart(bars, "µJ per image", label, groups=groups)
    return page.figure(chart, "Energy per image by layer in µJ, in the order of the forward pass.")


def _edges(report: Mapping[str, Any]) -> page.Html:
    edges = report["non_binary_edges"]
    if not edges:
        return page.paragraph("Every tensor that enters a product is binary.")
    costs = ("only added up", "multiplied")
    rows = [(edge["name"], edge["operand"], edge["what"], costs[bool(edge["multiplies"])]) for edge in edges]
    caption = f"Tensors that enter a product without being binary: {len(edges)}."
    return page.table(("layer", "operand", "what it is", "cost"), rows, caption)


def limits(m: Material) -> page.Html:
    return page.bullets([*LIMITS, *m.notes])


def made(m: Material) -> page.Html:
    """Command, versions, commit, date: what somebody needs to make this report again."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if m.command is None else m.command
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows = [("command", page.Html(f"<code>{page.text(command)}</code>")), ("date", now), ("commit", _commit())]
    if m.model is not None:
        device = next(m.model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        rows += [("model", type(m.model).__name__), ("device", f"{device.type}, {name}")]
    rows += [("Python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("s2tdpt", "torch", "captum", "matplotlib", "numpy")]
    return page.table(("what", "which"), rows, "One file, nothing is loaded from the network.")


def first(values: Mapping[str, Any], *keys: str) -> float | None:
    """The first of `keys` that holds a number."""
    return next((found for key in keys if (found := number(values.get(key))) is not None), None)


def number(value: Any) -> float | None:
    """A float, also from the text of a CSV cell; None for anything else, NaN included."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found == found else None


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}\u00a0%"


def millijoules(value: float) -> str:
    """An energy with three digits."""
    return f"{value:.3g}\u00a0mJ"


def _energy_of(report: Mapping[str, Any] | None, metrics: Mapping[str, Any], key: str) -> float | None:
    found = first(metrics, key)
    return found if found is not None or report is None else number(report.get("energy_mj"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout that the package runs from, if it does."""
    root = Path(__file__).resolve().parents[4]
    if not (root / ".git").exists():
        return "an installed package"
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
