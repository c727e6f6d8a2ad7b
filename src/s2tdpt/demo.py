"""`make demo`: a spiking Transformer and its ANN twin on real digits, from training to the report."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2tdpt import data, energy
from s2tdpt.explain.report import write_report
from s2tdpt.models import load_model
from s2tdpt.text import table
from s2tdpt.training.distributed import pick_device
from s2tdpt.training.engine import train
from s2tdpt.training.evaluate import evaluate, firing_rates
from s2tdpt.training.recipe import load_recipe

MAY_FIRE = (0.005, 0.5)  # outside of it an attention neuron is silent or saturated, and attention decides nothing
REPORT_IMAGES = 64  # the first eight are shown, all count for rates and for deletion and insertion


@dataclass(frozen=True)
class Trained:
    """One of the two models, and what was measured of it on the test pictures."""

    folder: Path
    net: Any
    top1: float
    seconds: float
    cost: energy.EnergyReport
    rates: dict[str, Any]

    @property
    def energy_mj(self) -> float:
        return self.cost.energy_mj()


def run(out: Path, *, device: str | None = None) -> dict[str, Any]:
    """Train both, compare them, write `out`/metrics.json and `out`/report.html; returns the metrics.

    Accuracies and rates are fractions, energies mJ per image with all time steps, by the table "paper".
    """
    test = data.load("digits", "test")
    spiking = _train("digits", "S²TDPT", out / "s2tdpt", test, device)
    twin = _train("digits_vit", "its ANN twin", out / "ann", test, device)
    metrics = {
        "test_top1": spiking.top1,
        "ann_test_top1": twin.top1,
        "n": len(test),
        "energy_mj": spiking.energy_mj,
        "ann_energy_mj": twin.energy_mj,
        **spiking.rates,
        "synaptic_firing_rate": spiking.cost.mean_firing_rate,
        "time_steps": spiking.net.time_steps,
        "train_seconds": spiking.seconds,
        "ann_train_seconds": twin.seconds,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(f"\n{_compare(spiking, twin, len(test))}\n")
    warn_of_idle_attention(spiking.rates["attention_firing_rate"])
    print("writing the report", flush=True)
    _report(spiking, twin, test, metrics, out / "report.html")
    print(f"pictures, spikes and attention: {out / 'report.html'}\nfigures: {out / 'metrics.json'}")
    return metrics


def warn_of_idle_attention(rates: list[float]) -> None:
    """Say loudly which blocks' attention neurons fire outside `MAY_FIRE`."""
    for block, rate in enumerate(rates, start=1):
        if not MAY_FIRE[0] <= rate <= MAY_FIRE[1]:
            print(
                f"WARNING: the attention neuron of block {block} fires {rate:.2%} of the time, outside of "
                f"{MAY_FIRE[0]:.1%} to {MAY_FIRE[1]:.0%}: this attention decides nothing",
                file=sys.stderr,
            )


def _train(recipe: str, title: str, out: Path, test: data.ImageSet, device: str | None) -> Trained:
    print(f"training {title}: recipe {recipe}, into {out}", flush=True)
    if any((out / name).is_file() for name in ("recipe.yaml", "metrics.json")):
        shutil.rmtree(out)  # of an earlier demo; nothing else is ever removed
    metrics = train(load_recipe(recipe), out, device=device)
    place = pick_device(device)
    net, _ = load_model(out, device=str(place))
    top1 = evaluate(net, test, device=place)["top1"]
    x = next(iter(data.DeviceLoader(test, len(test), device=place).epoch(0)))[0]
    return Trained(out, net, top1, metrics["train_seconds"], energy.count(net, x), firing_rates(net, x))


def _compare(spiking: Trained, twin: Trained, n: int) -> str:
    def row(name: str, show: Any) -> list[str]:
        return [name, show(spiking), show(twin)]

    rows = [
        row("weights", lambda t: f"{sum(weight.numel() for weight in t.net.parameters()):,}"),
        row("time steps", lambda t: str(t.net.time_steps)),
        row(f"accuracy on {n} test digits", lambda t: f"{t.top1:.2%}"),
        row("energy of an image", lambda t: f"{1000 * t.energy_mj:.2f} µJ"),
        ["mean firing rate of neurons", f"{spiking.rates['mean_firing_rate']:.1%}", "-"],
        ["the same, weighted by MACs", f"{spiking.cost.mean_firing_rate:.1%}", "-"],
        *(
            [f"attention neuron, block {block}", f"{rate:.1%}", "-"]
            for block, rate in enumerate(spiking.rates["attention_firing_rate"], start=1)
        ),
        row("training", lambda t: f"{t.seconds:.0f} s"),
    ]
    ratio = twin.energy_mj / spiking.energy_mj
    note = f"Energy: operations at 45 nm by the rules of `s2tdpt energy`; the twin needs {ratio:.1f} times as much."
    return f"{table(['', 'S²TDPT', 'ANN twin'], rows)}\n\n{note}"


def _report(spiking: Trained, twin: Trained, test: data.ImageSet, metrics: dict[str, Any], path: Path) -> None:
    """The figures above and what happens inside the spiking model, as one HTML page."""
    shown = test.limit(REPORT_IMAGES)
    with (spiking.folder / "log.csv").open(encoding="utf-8", newline="") as log:
        history = list(csv.DictReader(log))
    write_report(
        path,
        title="S²TDPT on handwritten digits",
        model=spiking.net,
        images=shown.images[:],
        labels=shown.labels,
        classes=shown.classes,
        metrics=metrics,
        history=history,
        energy=spiking.cost,
        ann_metrics={"test_top1": twin.top1, "energy_mj": twin.energy_mj},
        ann_energy=twin.cost,
        mean=shown.mean,
        std=shown.std,
        command="make demo",
    )
