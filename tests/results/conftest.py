"""`results` is a package of the checkout, not of the wheel. Runs as `s2tdpt train` leaves them, figures made up."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from s2tdpt.training.recipe import load_recipe  # noqa: E402

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("name", top1=0.94, seed=1, **{"optimizer.lr": 0.1})`: a finished run of recipes/cifar10_fast.yaml."""

    def make(
        name: str,
        *,
        top1: float = 0.94,
        commit: str | None = "abcdef1",
        recipe: str = "cifar10_fast",
        metrics: dict[str, Any] | None = None,
        measured: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        plan = load_recipe(recipe).replace(**changes)
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        plan.save(folder / "recipe.yaml")
        figures = {
            "recipe": plan.name,
            "model": plan.model.name,
            "attention": plan.model.attention,
            "data": plan.data.name,
            "evaluated_on": "holdout" if plan.data.holdout else "test",
            "weights": "last",
            "time_steps": 4,
            "top1": top1,
            "top5": 0.99,
            "last_epoch_top1": top1,
            "ema_top1": None,
            "best_epoch_top1": top1 + 0.01,
            "mean_firing_rate": 0.11,
            "attention_firing_rate": [0.25, 0.125],
            "epochs": 3,
            "train_seconds": 90.0,
            "hardware": {"device": "Abacus", "count": 1},
            "versions": {"s2tdpt": "0.1.0", "torch": "2.13.0"},
            "commit": commit,
        }
        (folder / "metrics.json").write_text(json.dumps(figures | (metrics or {})))
        log = ["epoch,time_steps,lr,train_loss,test_top1,ema_top1,seconds,images_per_second,attention_firing_rate"]
        log += [
            f"1,1,0.1,2.0,{top1 / 2},,30.0,1000,0.2",
            "2,4,0.1,1.5,,,30.0,1000,",
            f"3,4,0.0,1.0,{top1},,30.0,1000,0.2",
        ]
        (folder / "log.csv").write_text("\n".join(log) + "\n")
        if measured is not None:
            (folder / "measured.json").write_text(json.dumps(measured))
        return folder

    return make
