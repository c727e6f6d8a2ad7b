"""Tables and pictures are those of the runs, and a check says when they are not."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from results import add, plots, rows, tables
from results.blocks import BLOCKS, Material
from results.goals import Goal, Group, groups, outside_band, verdict
from results.plots import Epoch
from results.rows import Row

ROOT = Path(__file__).parents[2]
MEASURED = {"top1": 0.9, "energy_mj": 0.25, "energy_table": "paper", "energy_images": 10, "synaptic_firing_rate": 0.1}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with goals and peers, a README of one table, and no runs."""
    root = tmp_path / "checkout"
    (root / "results").mkdir(parents=True)
    for name in ("goals.csv", "published.csv"):
        shutil.copy(ROOT / "results" / name, root / "results" / name)
    (root / "README.md").write_text("# Title\n\n<!-- table: summary -->\nold\n<!-- /table -->\nrest\n")
    return root


@pytest.fixture
def add_run(make_run, checkout: Path):
    def enter(name: str, *options: str, **figures) -> None:
        run = make_run(name, **figures)
        assert add.main([str(run), *options, "--results", str(checkout / "results")]) == 0

    return enter


def block(name: str, checkout: Path, source: str = "docs/accuracy.md") -> str:
    return BLOCKS[name](Material.read(checkout), source)


def cells(table: str, start: str = "") -> list[str]:
    """The cells of the one line of a table whose first cells are `start`."""
    (line,) = [line for line in table.splitlines() if not start or line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_this_checkout_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().err


def test_tables_are_written_and_checked(checkout: Path, add_run, capsys) -> None:
    command = ["--root", str(checkout)]
    for seed, top1 in enumerate((0.95, 0.96, 0.97)):
        add_run(f"run{seed}", seed=seed, top1=top1, measured=MEASURED)
    for name, picture in plots.PICTURES.items():
        plots.save(picture, checkout / "results", checkout / f"docs/img/{name}.png")
    assert tables.main([*command, "--check"]) == 1
    assert "stale: README.md" in capsys.readouterr().err
    assert tables.main(command) == 0
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("# Title\n\n<!-- table: summary -->\n| recipe |")
    assert readme.endswith("<!-- /table -->\nrest\n")
    assert "| `cifar10_fast` | CIFAR-10 | 4 | 3 | 96.00 ± 1.00 % | 94.35 % | 1.5 | 25, 12 % | 0.250 mJ |" in readme
    assert tables.main([*command, "--check"]) == 0

    add_run("another", seed=1, top1=0.5)
    assert tables.main([*command, "--check"]) == 1
    complaints = capsys.readouterr().err
    for stale in ("README.md", *(f"docs/img/{name}.png" for name in plots.PICTURES)):
        assert f"stale: {stale}\n" in complaints
    assert "accuracy.csv" not in complaints
    path = checkout / "results/accuracy.csv"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    tables.main([*command, "--check"])
    assert "stale: results/accuracy.csv\n" in capsys.readouterr().err


def test_a_table_that_does_not_exist_is_refused(checkout: Path, capsys) -> None:
    (checkout / "README.md").write_text("<!-- table: nonsense -->\n<!-- /table -->\n")
    assert tables.main(["--root", str(checkout)]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_goals_say_what_is_missed(checkout: Path, add_run) -> None:
    before = block("goals", checkout)
    assert before.count("not run yet") == 10
    add_run("one", "--goal", "1", top1=0.94)
    add_run("two", "--goal", "1", top1=0.945, seed=1)
    add_run("low", "--goal", "3", "--variant", "low", top1=0.95, measured=MEASURED)
    table = block("goals", checkout)
    assert cells(table, "1 | the paper's model and mechanism: s2tdpt_4_384, T = 4 | CIFAR-10")[4:] == [
        "`cifar10_fast`", "2", "94.25 ± 0.35 %", "not measured", "**missed** by 0.10 points, 2 of 3 seeds"
    ]  # fmt: skip
    line = cells(table, "3 | the paper's accuracy with the least energy, T ≤ 4 | CIFAR-10")
    assert line[4] == "`cifar10_fast`, low"
    assert line[-1] == "accuracy **met**, energy **missed** by 0.100 mJ"
    assert table.count("not run yet") == 8
    add_run("average", "--goal", "2", "--variant", "average", top1=0.93, metrics={"weights": "ema", "ema_top1": 0.95})
    add_run("both", "--goal", "2 3", "--variant", "both", top1=0.96, measured=MEASURED)
    for start in ("2 | one time step | CIFAR-10", "3 | the paper's accuracy with the least energy, T ≤ 4 | CIFAR-10"):
        assert any(start in line and "both" in line for line in block("goals", checkout).splitlines())
    assert "(rows 2 and 3, commit" in block("commands", checkout)
    (line,) = [cells(line) for line in block("goals", checkout).splitlines() if "average" in line and "93.00" in line]
    assert (line[6], line[-1]) == ("93.00 % (averaged weights 95.00 %)", "**missed** by 1.00 points")


@pytest.fixture
def row(make_run, checkout: Path) -> Row:
    add.main([str(make_run("row")), "--results", str(checkout / "results")])
    return rows.read(checkout / "results/accuracy.csv")[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "**met**, aim missed"),
        ({"top1_last": 0.961}, "**met**, aim met too"),
        ({"top1_last": 0.929}, "**missed** by 0.10 points"),
        ({"top1_last": 0.9, "top1_ema": 0.99, "top1_best_epoch": 0.99}, "**missed** by 3.00 points"),
        ({"attention_firing_rate": (0.2, 0.004)}, "an attention neuron fires outside"),
    ],
)
def test_verdicts_are_of_the_last_epoch(row: Row, changes: dict, expected: str) -> None:
    goal = Goal("1", "cifar10", "", 1, 93.0, 96.0, None, None)
    assert expected in verdict(goal, Group((dataclasses.replace(row, **changes),)))


def test_outside_band() -> None:
    assert outside_band([0.0049, 0.005, 0.5, 0.51]) == [0.0049, 0.51]


def test_held_out_runs_do_not_count(checkout: Path, add_run) -> None:
    add_run("held", "--goal", "1", "--variant", "tuning", **{"data.holdout": 5000})
    assert block("goals", checkout).count("not run yet") == 10
    assert "tuning" not in block("summary", checkout, "README.md")
    assert "(held-out images)" in block("runs", checkout)


def test_the_summary_has_a_departure_only_where_its_recipe_has_no_run(checkout: Path, add_run) -> None:
    add_run("other", "--variant", "earlier")
    assert "| `cifar10_fast`, earlier |" in block("summary", checkout, "README.md")
    add_run("own", seed=1)
    assert "earlier" not in block("summary", checkout, "README.md")
    assert "earlier" in block("runs", checkout)


def test_seeds_share_a_group_and_variants_do_not(row: Row) -> None:
    others = [dataclasses.replace(row, **change) for change in ({"seed": 1}, {"variant": "long"}, {"data": "cifar100"})]
    assert [len(group.rows) for group in groups([row, *others])] == [2, 1, 1]


def test_ablation_table(checkout: Path, add_run) -> None:
    assert block("ablation", checkout) == "Not run yet."
    common = {"data.holdout": 5000, "max_minutes": 2.0}
    adamw = {"optimizer.name": "adamw", "optimizer.lr": 0.001}
    items = {"AdamW": adamw, "baseline": {}, "no smoothing": {"label_smoothing": 0.0}}
    for number, (item, changes) in enumerate(items.items()):
        for seed in range(2):
            top1 = 0.9 + 0.01 * number + 0.002 * seed
            add_run(f"{number}-{seed}", "--ablation", item, top1=top1, seed=seed, **common, **changes)
    table = block("ablation", checkout)
    assert [cells(line)[0] for line in table.splitlines()[2:]] == ["baseline", "AdamW", "no smoothing"]
    base = cells(table, "baseline")
    assert base[1:5] == ["", "2", "91.10 ± 0.14 %", ""]
    changed = cells(table, "AdamW")
    assert changed[1] == "`optimizer.lr=0.001`, `optimizer.name=adamw`"
    assert changed[3:5] == ["90.10 ± 0.14 %", "-1.00 ± 0.14"]
    assert cells(table, "no smoothing")[4] == "+1.00 ± 0.14"
    averaged = {"weights": "ema", "ema_top1": 0.93}
    add_run("ema", "--ablation", "average", top1=0.5, metrics=averaged, ema_decay=0.9, **common)
    assert cells(block("ablation", checkout), "average")[3:5] == ["93.00 % (not averaged 50.00 %)", "+1.90"]


def test_every_run_has_its_command(checkout: Path, add_run) -> None:
    add_run("one", seed=4)
    assert "\ns2tdpt train cifar10_fast --seed 4\n" in block("commands", checkout)


def test_peers_are_named_with_their_sources() -> None:
    for line in block("published", ROOT).splitlines()[2:]:
        *_, what, source = cells(line)
        assert what in ("paper", "log", "re-run")
        assert re.search(r"arXiv \d{4}\.\d{5}|github\.com/", source)


def test_curves_begin_at_the_first_minute(checkout: Path, add_run) -> None:
    add_run("one", top1=0.9)
    steps = plots.history(checkout / "results/cifar10_fast/seed0")
    assert steps == [Epoch(0.5, "1", 45.0, 2.0), Epoch(1.0, "4", None, 1.5), Epoch(1.5, "4", 90.0, 1.0)]


def test_a_twin_stands_beside_the_paper_s_twin(checkout: Path, add_run) -> None:
    add_run("spiking", top1=0.9)
    add_run("twin", recipe="vit_cifar10", top1=0.9)
    table = block("summary", checkout)
    assert [line.split("|")[6].strip() for line in table.splitlines()[2:]] == ["94.35 %", "96.73 %"]
