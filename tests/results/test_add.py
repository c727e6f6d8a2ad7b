"""Runs enter results/ by one command, once, with everything that is needed to do them again."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from results import add, plots, rows
from results.goals import groups
from s2tdpt.training.recipe import load_recipe, parse_overrides
from s2tdpt.training.sources import folder_of

MEASURED = {
    "top1": 0.93,
    "energy_mj": 0.4321987,
    "energy_table": "paper",
    "energy_images": 200,
    "synaptic_firing_rate": 0.15,
    "mean_firing_rate": 0.12,
    "attention_firing_rate": [0.3, 0.2],
    "confusion": [[1, 2], [3, 4]],
}


def table(root: Path, name: str = "accuracy.csv") -> list[dict[str, str]]:
    with (root / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_run_becomes_a_row(make_run, root: Path) -> None:
    run = make_run("one", seed=1, max_minutes=20.0, measured=MEASURED)
    assert add.main([str(run), "--goal", "1", "--results", str(root)]) == 0
    (row,) = table(root)
    expected = {
        "run": "cifar10_fast/seed1",
        "goal": "1",
        "variant": "",
        "seed": "1",
        "epochs": "3",
        "time_steps": "4",
        "evaluated_on": "test",
        "precision": "bfloat16",
        "top1_last": "0.94",
        "top1_ema": "",
        "top1_best_epoch": "0.95",
        "top1_float32": "0.93",
        "top5": "0.99",
        "synaptic_firing_rate": "0.15",
        "mean_firing_rate": "0.12",
        "attention_firing_rate": "0.3 0.2",
        "energy_mj": "0.4322",
        "minutes": "1.5",
        "hardware": "Abacus",
        "versions": "s2tdpt 0.1.0, torch 2.13.0",
        "commit": "abcdef1",
        "command": "s2tdpt train cifar10_fast --seed 1 --set max_minutes=20.0",
    }
    assert {key: row[key] for key in expected} == expected
    assert "paper table" in row["energy_rule"]
    assert "200 images" in row["energy_rule"]
    for name in ("recipe.yaml", "log.csv", "metrics.json"):
        assert (root / "cifar10_fast/seed1" / name).read_bytes() == (run / name).read_bytes()
    kept = {path.name for path in (root / "cifar10_fast/seed1").iterdir()}
    assert kept == {"recipe.yaml", "log.csv", "metrics.json", "provenance.json", "measured.json"}
    assert "confusion" not in json.loads((root / "cifar10_fast/seed1/measured.json").read_text())


def test_rows_are_read_back(make_run, root: Path) -> None:
    for seed in (10, 2):
        run = make_run(f"run{seed}", seed=seed, measured=MEASURED)
        add.main([str(run), "--results", str(root)])
    again = rows.read(root / "accuracy.csv")
    assert [row.run for row in again] == ["cifar10_fast/seed2", "cifar10_fast/seed10"]
    assert again[0].attention_firing_rate == (0.3, 0.2)
    assert again[0].top1_ema is None
    assert rows.to_text(again) == (root / "accuracy.csv").read_text()


def test_adding_again_replaces(make_run, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add.main([str(make_run("first", commit=None)), "--commit", "1234567", "--goal", "2", "--results", str(root)])
    once = (root / "accuracy.csv").read_text()
    for again in (str(root / "cifar10_fast/seed0"), "--all"):  # what was said of the run stays known
        assert add.main([again, "--results", str(root)]) == 0
        assert (root / "accuracy.csv").read_text() == once
    add.main([str(make_run("second", top1=0.5)), "--results", str(root)])
    (row,) = table(root)
    assert (row["top1_last"], row["goal"], row["commit"]) == ("0.5", "2", "abcdef1")
    add.main([str(root / "cifar10_fast/seed0"), "--goal", "", "--results", str(root)])
    assert table(root)[0]["goal"] == ""
    assert capsys.readouterr().out.startswith("added cifar10_fast/seed0: 94.00% on cifar10")


def test_figures_of_a_run_that_was_there_before_go(make_run, root: Path) -> None:
    add.main([str(make_run("first", measured=MEASURED)), "--results", str(root)])
    assert table(root)[0]["energy_mj"] == "0.4322"
    add.main([str(make_run("second")), "--results", str(root)])
    assert table(root)[0]["energy_mj"] == ""


def test_figures_of_other_weights_are_refused(make_run, root: Path, capsys) -> None:
    run = make_run("one", measured=MEASURED | {"sha256": "1"})
    (run / "model.json").write_text('{"sha256": "2"}')
    assert add.main([str(run), "--results", str(root)]) == 2
    assert "measured on other weights" in capsys.readouterr().err


def test_minutes_of_runs_that_it_goes_on_from_count_too(make_run, root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root.parent)
    for name, source in (("second", "runs/first/model.safetensors"), ("third", "runs/second")):
        before = Path(folder_of(source), "model.json")
        make_run(name, initial_weights=source, metrics={"initial_weights": {"source": source, "sha256": name}})
        before.parent.mkdir(exist_ok=True)
        before.write_text(json.dumps({"sha256": name}))
    shutil.copytree(make_run("zeroth"), "runs/first", dirs_exist_ok=True)
    make_run("taught", initial_weights="vit_h_384.cifar10")  # has a row of its own, whether it ships or not
    make_run("finer", initial_weights="s2tdpt_tiny.digits")
    for name in ("second", "third", "taught", "finer"):
        assert add.main([f"runs/{name}", "--variant", name, "--results", str(root)]) == 0
    minutes = {row["variant"]: row["minutes"] for row in table(root)}
    assert minutes == {"second": "3", "third": "4.5", "taught": "1.5", "finer": "1.5"}
    assert plots.history(root / "cifar10_fast/third-seed0")[0].minutes == 3.5
    figure = Figure()
    plots.curves(figure, root)
    dotted = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert sorted(dotted) == [1.0, 1.0, 1.5, 2.5, 3.0, 4.0]  # T = 4 in each, and where two go on
    Path("runs/second/model.json").write_text('{"sha256": "another"}')
    third = root / "cifar10_fast/third-seed0"
    assert add.main([str(third), "--results", str(root)]) == 0  # what is known stays
    assert [row["minutes"] for row in table(root) if row["variant"] == "third"] == ["4.5"]
    again = ["runs/third", "--variant", "again", "--results", str(root)]
    assert add.main(again) == 2
    assert "goes on from runs/second, which holds other weights now" in capsys.readouterr().err
    shutil.rmtree("runs/second")
    assert add.main(again) == 2
    assert "goes on from runs/second, which is not here: say with --minutes-before" in capsys.readouterr().err
    assert add.main([*again, "--minutes-before", "8"]) == 0
    assert [row["minutes"] for row in table(root) if row["variant"] == "again"] == ["9.5"]


def test_seeds_of_a_recipe_have_one_teacher(make_run, root: Path, capsys) -> None:
    for seed, taught in enumerate(({}, {"distill": {"sha256": "a"}}, {"distill": {"sha256": "a"}})):
        assert add.main([str(make_run(f"of{seed}", seed=seed, metrics=taught)), "--results", str(root)]) == 0
    other = ["--results", str(root), str(make_run("other", seed=3, metrics={"distill": {"sha256": "b"}}))]
    assert add.main(other) == 2
    said = capsys.readouterr().err
    assert "other was taught by another teacher than" in said
    assert "cifar10_fast/seed1: name it with --variant" in said
    assert add.main([*other, "--variant", "new-teacher"]) == 0
    assert add.main([*other, "--ablation", "distill"]) == 0
    own = make_run("own", seed=4, metrics={"distill": {"sha256": "c"}})  # in an ablation each seed may have its own
    assert add.main([str(own), "--results", str(root), "--ablation", "distill"]) == 0


def test_a_run_is_named_from_where_one_stands(make_run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add.main([str(make_run("first")), "--results", str(root)])
    monkeypatch.chdir(root.parent)
    assert add.main(["results/cifar10_fast/seed0", "--goal", "5", "--results", str(root)]) == 0
    assert [row["goal"] for row in table(root)] == ["5"]


def test_the_commit_has_to_be_known(make_run, root: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S2TDPT_COMMIT", raising=False)
    run = make_run("one", commit=None)
    assert add.main([str(run), "--results", str(root)]) == 2
    assert "--commit" in capsys.readouterr().err
    assert not (root / "cifar10_fast").exists()
    monkeypatch.setenv("S2TDPT_COMMIT", "7654321")
    assert add.main([str(run), "--results", str(root)]) == 0
    assert table(root)[0]["commit"] == "7654321"


def test_another_recipe_needs_a_name(make_run, root: Path, capsys) -> None:
    run = make_run("one", **{"optimizer.lr": 0.5})
    assert add.main([str(run), "--results", str(root)]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert add.main([str(run), "--variant", "bold", "--results", str(root)]) == 0
    (row,) = table(root)
    assert (row["run"], row["variant"]) == ("cifar10_fast/bold-seed0", "bold")
    assert row["command"] == "s2tdpt train cifar10_fast --seed 0 --set optimizer.lr=0.5"


@pytest.mark.parametrize("recipe", ["cifar10_fast", "two_minutes"])  # with a clock, and without
def test_a_run_with_a_shorter_clock_needs_a_name(recipe: str, make_run, root: Path, capsys) -> None:
    usual = load_recipe(recipe).max_minutes
    short, long_enough = (600.0, [None]) if usual is None else (usual / 2, [usual, usual * 2, None])
    run = make_run("short", recipe=recipe, max_minutes=short)
    assert add.main([str(run), "--results", str(root)]) == 2
    assert f"recipes/{recipe}.yaml in max_minutes ({usual}, not {short}): name it" in capsys.readouterr().err
    assert add.main([str(run), "--variant", "short", "--results", str(root)]) == 0
    for seed, minutes in enumerate(long_enough):
        run = make_run(f"whole{seed}", recipe=recipe, seed=seed, max_minutes=minutes)
        assert add.main([str(run), "--results", str(root)]) == 0
    whole = [f"{recipe}/seed{seed}" for seed in range(len(long_enough))]
    assert [row["run"] for row in table(root)] == [*whole, f"{recipe}/short-seed0"]


def test_a_recipe_counts_for_the_goal_that_it_is_meant_for(make_run, root: Path) -> None:
    root.mkdir()
    goals = "goal,data,what,seeds,top1,top1_aim,energy_mj,energy_aim,recipe\n"
    goals += "7,cifar100,,1,,,,,cifar10_fast\n3,cifar10,,1,,,,,cifar10_fast\n4,cifar10,,1,,,,,cifar10_fast\n"
    (root / "goals.csv").write_text(goals)
    for options in ([], ["--variant", "odd"]):
        assert add.main([str(make_run(f"run{len(options)}")), *options, "--results", str(root)]) == 0
    assert {row["run"]: row["goal"] for row in table(root)} == {
        "cifar10_fast/seed0": "3 4",
        "cifar10_fast/odd-seed0": "",
    }
    add.main([str(root / "cifar10_fast/seed0"), "--goal", "", "--results", str(root)])
    add.main([str(root / "cifar10_fast/seed0"), "--results", str(root)])
    assert table(root)[0]["goal"] == ""


def test_paths_of_the_machine_that_trained_stay_there(make_run, root: Path) -> None:
    told = {
        "distill": {"teacher": "/somewhere/vit_seed3", "sha256": "00"},
        "initial_weights": {"source": "/somewhere/else/first/model.safetensors", "sha256": "01"},
    }
    changes = {"distill.teacher": "/somewhere/vit_seed3", "initial_weights": "/somewhere/else/first/model.safetensors"}
    run = make_run("one", metrics=told, **changes)
    (run / "provenance.json").write_text('{"minutes_before": 2}')
    assert add.main([str(run), "--variant", "taught", "--results", str(root)]) == 0
    kept = load_recipe(root / "cifar10_fast/taught-seed0/recipe.yaml")
    assert kept.distill is not None
    assert (kept.distill.teacher, kept.initial_weights) == ("runs/vit_seed3", "runs/first/model.safetensors")
    command = table(root)[0]["command"]
    assert "--set distill.teacher=runs/vit_seed3" in command
    assert "--set initial_weights=runs/first/model.safetensors" in command
    assert not any("/somewhere" in path.read_text() for path in (root / "cifar10_fast/taught-seed0").iterdir())


def test_notes(make_run, root: Path) -> None:
    run = make_run("one", metrics={"inexact_at": [100, 250]})
    assert add.main([str(run), "--note", "in the rain", "--results", str(root)]) == 0
    assert table(root)[0]["note"] == "in the rain; went on from a compact state at step 100, 250"


def test_an_unfinished_run_is_refused(tmp_path: Path, root: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert add.main([str(tmp_path / "empty"), "--results", str(root)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_ablation_runs_have_a_table_of_their_own(make_run, root: Path) -> None:
    add.main([str(make_run("main")), "--results", str(root)])
    run = make_run("adamw", seed=1, **{"optimizer.name": "adamw", "data.holdout": 5000})
    assert add.main([str(run), "--ablation", "AdamW", "--results", str(root)]) == 0
    assert [row["run"] for row in table(root)] == ["cifar10_fast/seed0"]
    (row,) = table(root, "ablation.csv")
    assert (row["run"], row["variant"], row["evaluated_on"]) == ("ablation/AdamW-seed1", "AdamW", "holdout")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 3, "max_minutes": None, "schedule.time_steps": "1:2"},
        {"model.options.neuron": "plif", "model.options.window.a_plus": [0.1, 0.2]},
        {"augment.randaugment.operations": "geometric5", "optimizer.betas": [0.5, 0.9], "name": "cifar10_fast"},
    ],
)
def test_the_command_trains_the_same_recipe(changes: dict, tmp_path: Path) -> None:
    recipe = load_recipe("cifar10_fast").replace(**changes)
    program, verb, name, *options = shlex.split(add.command(recipe, tmp_path))
    assert (program, verb, name) == ("s2tdpt", "train", "cifar10_fast")
    sets = [value for flag, value in zip(options[::2], options[1::2], strict=True) if flag == "--set"]
    seed = int(options[options.index("--seed") + 1])
    assert load_recipe(name).replace(**parse_overrides(sets), seed=seed) == recipe


def test_a_recipe_that_does_not_ship_is_named_by_its_file(tmp_path: Path) -> None:
    recipe = load_recipe("cifar10_fast").replace(name="mine")
    assert add.command(recipe, tmp_path / "mine/seed0") == "s2tdpt train results/mine/seed0/recipe.yaml"


def test_processes_that_share_a_batch_train_the_recipe_itself(make_run, root: Path) -> None:
    two = {"metrics": {"hardware": {"device": "Abacus", "count": 2}}, "data.batch_size": 256}
    assert add.main([str(make_run("two", **two)), "--results", str(root)]) == 0
    (row,) = table(root)
    assert row["run"] == "cifar10_fast/seed0"
    told = "torchrun --standalone --nproc-per-node 2 -m s2tdpt train cifar10_fast --seed 0 --set data.batch_size=256"
    assert row["command"] == told


def test_the_precision_is_that_of_the_scores_and_no_mean_mixes_two(make_run, root: Path) -> None:
    scored = {"eval_precision": "float32"}
    for seed, changes in enumerate(({}, scored, scored)):
        run = make_run(f"{seed}", seed=seed, **changes)
        assert add.main([str(run), "--variant", "mixed", "--results", str(root)]) == 0
    assert [row["precision"] for row in table(root)] == ["bfloat16", "float32", "float32"]
    assert [group.top1.n for group in groups(rows.collect(root)[0])] == [1, 2]
