"""`explain`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from s2tdpt.cli.options import Device, Model, Pictures, TimeSteps


def explain(
    model: Model,
    files: Pictures,
    out: Annotated[
        Path, typer.Option(metavar="FILE", dir_okay=False, help="The HTML report, one file with all pictures in it.")
    ] = Path("report.html"),
    device: Device = None,
    time_steps: TimeSteps = None,
) -> None:
    """Show why the model answers as it does, in one HTML report.

    Heat maps, attention maps, firing rates and spikes of each picture; the file needs no network. The first eight
    pictures are shown, all of them count for rates and for the deletion and insertion curves.

    \b
    Examples:
      s2tdpt explain s2tdpt_tiny.digits seven.png --out seven.html
      s2tdpt explain runs/cifar10_fast cat.jpg dog.jpg --time-steps 2
    """
    import torch

    from s2tdpt import energy
    from s2tdpt.cli import subject
    from s2tdpt.explain.report import write_report

    net, card = subject.load(model, device, time_steps)
    paths = subject.expand(files)
    pictures = torch.stack([subject.read(net, card, path) for path in paths])
    metrics, history = _of_run(Path(model))
    trained_on = subject.training_data(card)
    write_report(
        out,
        title=f"{model}: {paths[0].name}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""),
        model=net,
        images=pictures,
        classes=subject.classes(net, card),
        mean=trained_on["mean"],
        std=trained_on["std"],
        metrics=metrics or card.get("metrics"),
        history=history,
        energy=energy.count(net, subject.normalise(net, card, pictures)),
    )
    count = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB, {count})")


def _of_run(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, str]] | None]:
    """metrics.json and the rows of log.csv, where MODEL is a run's folder that has them."""
    metrics = history = None
    if (folder / "metrics.json").is_file():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if (folder / "log.csv").is_file():
        with (folder / "log.csv").open(encoding="utf-8", newline="") as log:
            history = list(csv.DictReader(log))
    return metrics, history
