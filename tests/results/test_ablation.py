"""The ablation's items, and a real run of one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from results import ablation
from results.ablation import items
from s2tdpt.training.recipe import load_recipe


def test_every_item_is_one_change_of_the_recipe() -> None:
    base = load_recipe("two_minutes")
    assert base.max_minutes is None
    assert base.data.holdout == 5000
    found = {name: base.replace(**changes) for name, changes in items(base, Path("runs/vit-seed0")).items()}
    assert found["baseline"] == base
    assert len({recipe.to_yaml() for recipe in found.values()}) == len(found) >= 10
    assert found["vit"].model.name == "vit_4_384"
    assert found["no-jump"].model.options == {"window": {"jump": False}}


def test_unknown_items_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["baselin"]) == 2
    assert "there is no item 'baselin'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_becomes_a_row(tmp_path: Path) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--commit", "abc1234"]
    tiny = {
        "schedule.time_steps": "1:1",
        "data.holdout": "1000",
        "model.options": "{embed_dim: 16, depth: 1, mlp_ratio: 1, stem_channels: [4, 4, 8]}",
    }
    changes = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    words = ["norms", "--seeds", "3", "--recipe", "digits", "--devices", "cpu", *where, *changes]
    assert ablation.main(words) == 0, (tmp_path / "runs" / "norms-seed3.log").read_text()
    with (tmp_path / "results" / "ablation.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["variant"], row["seed"], row["evaluated_on"], row["commit"]) == ("norms", "3", "holdout", "abc1234")
    assert "--set norm_batches=50" in row["command"]
