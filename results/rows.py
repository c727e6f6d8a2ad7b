"""results/accuracy.csv and results/ablation.csv: one row a run, read from the run's folder under results/."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from s2tdpt.errors import DataError
from s2tdpt.training.checkpoint import write_atomic
from s2tdpt.training.folder import METRICS, RECIPE
from s2tdpt.training.recipe import load_recipe

RESULTS = Path(__file__).resolve().parent
ACCURACY, ABLATION = "accuracy.csv", "ablation.csv"
PROVENANCE, MEASURED = "provenance.json", "measured.json"
ABLATION_RUNS = "ablation"
ENERGY_RULE = "eq. 29 ({table} table), nominal MACs, rates of {images} images (docs/energy.md)"


@dataclass(frozen=True)
class Row:
    """Accuracies and rates are fractions; README.md of this folder says what each column is."""

    run: str
    goal: str
    model: str
    attention: str
    data: str
    recipe: str
    variant: str
    seed: int
    epochs: int
    time_steps: int
    evaluated_on: str
    precision: str
    top1_last: float
    top1_ema: float | None
    top1_best_epoch: float | None
    weights: str
    top5: float
    top1_float32: float | None
    synaptic_firing_rate: float | None
    mean_firing_rate: float | None
    attention_firing_rate: tuple[float, ...]
    energy_mj: float | None
    energy_rule: str
    minutes: float
    hardware: str
    versions: str
    commit: str
    command: str
    note: str

    @property
    def group(self) -> tuple[str, ...]:
        """Rows that differ in nothing but the seed share it."""
        return self.data, self.recipe, self.variant, self.evaluated_on, self.precision

    @property
    def top1(self) -> float:
        """Of the weights that the run hands out."""
        return self.top1_last if self.top1_ema is None or self.weights == "last" else self.top1_ema

    @property
    def title(self) -> str:
        """The recipe, and in what a variant departs from it."""
        return f"{self.recipe}, {self.variant}" if self.variant else self.recipe


def from_folder(folder: Path, root: Path) -> Row:
    """The row of the run kept in `folder`, which is RECIPE/RUN (or ablation/RUN) under `root`."""
    metrics, provenance, measured = (read_json(folder / name) for name in (METRICS, PROVENANCE, MEASURED))
    if not metrics:
        raise DataError(f"{folder} holds no {METRICS}: it is no finished run")
    recipe = load_recipe(folder / RECIPE)
    rates = {**metrics, **measured}
    hardware = metrics["hardware"]
    rule = {"table": measured.get("energy_table"), "images": measured.get("energy_images")}
    return Row(
        run=folder.relative_to(root).as_posix(),
        goal=str(provenance.get("goal", "")),
        model=metrics["model"],
        attention=metrics["attention"],
        data=metrics["data"],
        recipe=metrics["recipe"],
        variant=_variant(folder.name),
        seed=recipe.seed,
        epochs=metrics["epochs"],
        time_steps=metrics["time_steps"],
        evaluated_on=metrics["evaluated_on"],
        precision=recipe.scored_in,
        top1_last=metrics["last_epoch_top1"],
        top1_ema=metrics["ema_top1"],
        top1_best_epoch=metrics["best_epoch_top1"],
        weights=metrics["weights"],
        top5=metrics["top5"],
        top1_float32=measured.get("top1"),
        synaptic_firing_rate=rates.get("synaptic_firing_rate"),
        mean_firing_rate=rates.get("mean_firing_rate"),
        attention_firing_rate=tuple(rates.get("attention_firing_rate") or ()),
        energy_mj=measured.get("energy_mj"),
        energy_rule=ENERGY_RULE.format(**rule) if "energy_mj" in measured else "",
        minutes=minutes_before(folder) + metrics["train_seconds"] / 60,
        hardware=hardware["device"] + (f" x {hardware['count']}" if hardware["count"] > 1 else ""),
        versions=", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        commit=provenance.get("commit") or metrics["commit"] or "",
        command=provenance.get("command", ""),
        note="; ".join(filter(None, [provenance.get("note"), inexact(metrics)])),
    )


def minutes_before(folder: Path) -> float:
    """Of the runs that the one kept in `folder` goes on from; 0 where it begins itself."""
    return read_json(folder / PROVENANCE).get("minutes_before", 0.0)


def inexact(metrics: dict[str, Any]) -> str:
    """Where a run went on from a compact state, which is not the state that it had."""
    steps = metrics.get("inexact_at") or ()
    return f"went on from a compact state at step {', '.join(map(str, steps))}" if steps else ""


def collect(root: Path) -> tuple[list[Row], list[Row]]:
    """Rows of all runs under `root`, in order: those of accuracy.csv, and those of the ablation."""
    folders = [file.parent for file in root.glob(f"*/*/{METRICS}")]
    rows = sorted((from_folder(folder, root) for folder in folders), key=_in_order)
    ablation = [row for row in rows if row.run.startswith(f"{ABLATION_RUNS}/")]
    return [row for row in rows if row not in ablation], ablation


def texts(root: Path) -> dict[str, str]:
    """What accuracy.csv and, where there are such runs, ablation.csv should hold."""
    runs, ablation = collect(root)
    return {ACCURACY: to_text(runs)} | ({ABLATION: to_text(ablation)} if ablation else {})


def update(root: Path) -> None:
    """Write both files anew from the runs under `root`."""
    for name, text in texts(root).items():
        write_atomic(root / name, text.encode())


def to_text(rows: Iterable[Row]) -> str:
    """Rows as CSV; what is not known is an empty cell, figures have as many digits as mean something."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def read(path: Path) -> list[Row]:
    """All rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    wanted = {field.name for field in fields(Row)}
    if table and table[0].keys() != wanted:
        differing = sorted(wanted.symmetric_difference(table[0]))
        raise DataError(f"{path} has other columns ({', '.join(map(str, differing))}): python -m results.add --all")
    return [Row(**{field.name: _parsed(str(field.type), row[field.name]) for field in fields(Row)}) for row in table]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _variant(name: str) -> str:
    """ "seed1" is the recipe itself, "long-seed1" and "long" are its variant "long"."""
    return re.sub(r"-?seed\d+$", "", name)


def _in_order(row: Row) -> tuple[list[tuple[int, str]], str, int]:
    """By recipe (its numbers as numbers), the recipe itself before its variants, then by seed."""
    parts = re.split(r"(\d+)", row.run.partition("/")[0])
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], row.variant, row.seed


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)


def _parsed(kind: str, text: str) -> Any:
    if kind.startswith("tuple"):
        return tuple(map(float, text.split()))
    if "None" in kind and not text:
        return None
    return int(text) if kind == "int" else float(text) if kind.startswith("float") else text
