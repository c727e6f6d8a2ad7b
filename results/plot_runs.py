"""Training curves of the runs under results/, as one picture: `python results/plot_runs.py`."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "img" / "training-curves.png"


def read(log: Path) -> list[dict[str, str]]:
    with log.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def draw(logs: list[Path]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for log in logs:
        rows = read(log)
        minutes, total = [], 0.0
        for row in rows:
            total += float(row["seconds"]) / 60
            minutes.append(total)
        measured = [(m, 100 * float(r["test_top1"])) for m, r in zip(minutes, rows, strict=True) if r["test_top1"]]
        name = f"{log.parent.parent.name} ({log.parent.name}): {measured[-1][1]:.2f} %"
        (line,) = axes.plot(*zip(*measured, strict=True), marker="o", markersize=3.5, label=name)
        switch = next((m for m, r in zip(minutes, rows, strict=True) if r["time_steps"] != rows[0]["time_steps"]), None)
        if switch is not None:
            axes.axvline(switch, color=line.get_color(), linewidth=0.8, linestyle=":")
    axes.set(xlabel="minutes of training on one GPU (dotted: from T = 1 to T = 4)", ylabel="test accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    draw(sorted(HERE.glob("*/*/log.csv")))
    print(PICTURE.relative_to(HERE.parent))
