"""`train` from the command line: a run, its interruption and its resumption, and the demo's warnings."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s2tdpt.errors import RecipeError, TrainingInterrupted
from s2tdpt.training import engine, needs
from s2tdpt.training import recipe as recipes
from s2tdpt.training.checkpoint import LATEST
from s2tdpt.training.recipe import Recipe, load_recipe, parse_overrides

QUICK = [
    "--set",
    "schedule.time_steps=1:1",
    "--set",
    "model.options={embed_dim: 32, depth: 1, stem_channels: [8, 16, 32]}",
]


def test_a_trained_folder_is_a_model(cli, tmp_path: Path, picture: Path) -> None:
    result = cli("train", "digits", "--out", tmp_path / "run", "--seed", "3", "--device", "cpu", *QUICK)
    assert result.exit_code == 0, result.output
    top1 = json.loads((tmp_path / "run/metrics.json").read_text())["top1"]
    assert f"{top1:.2%}" in result.stdout
    assert "seed: 3\n" in (tmp_path / "run/recipe.yaml").read_text()
    cli("evaluate", tmp_path / "run", "--device", "cpu", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["top1"] == pytest.approx(top1)
    assert cli("predict", tmp_path / "run", picture).exit_code == 0


def test_a_run_is_not_overwritten(cli, refused, tmp_path: Path) -> None:
    arguments = ["train", "digits", "--out", tmp_path / "run", "--device", "cpu", *QUICK]
    cli(*arguments)
    before = (tmp_path / "run/model.safetensors").read_bytes()
    assert "--resume" in refused(*arguments)
    again = cli("train", tmp_path / "run/recipe.yaml", "--out", tmp_path / "run", "--resume")
    assert again.exit_code == 0
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_a_run_that_is_not_there_is_not_gone_on_with(refused, tmp_path: Path) -> None:
    said = refused("train", "digits", "--out", tmp_path / "rum", "--device", "cpu", *QUICK, "--resume")
    assert f"{tmp_path / 'rum'} holds no run to go on with" in said
    assert not (tmp_path / "rum").exists()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """(recipe, folder, resume) of each run, which is not trained: only its folder is made, in an empty one."""
    calls: list[tuple[str, str, bool]] = []

    def train(recipe: Recipe, folder: Path, *, resume: bool, **where: object) -> dict[str, float]:
        calls.append((recipe.name, str(folder), resume))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").touch()
        return {"top1": 0.5, "n": 2}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "train", train)
    return calls


TAUGHT = ["train", "digits", "--out", "mine", "--set", "distill.teacher=runs/digits_vit"]


def test_what_a_recipe_needs_is_trained_first_and_once(cli, trained) -> None:
    assert cli(*TAUGHT, "--set", "initial_weights=runs/digits_vit/model.safetensors").exit_code == 0
    assert trained == [("digits_vit", "runs/digits_vit", False), ("digits", "mine", False)]
    assert cli(*TAUGHT).exit_code == 0
    assert trained[2:] == [("digits", "mine", False)]


def test_it_goes_on_where_it_was_interrupted(cli, trained) -> None:
    Path("runs/digits_vit").mkdir(parents=True)
    load_recipe("digits_vit").save("runs/digits_vit/recipe.yaml")
    assert cli(*TAUGHT).exit_code == 0
    assert trained == [("digits_vit", "runs/digits_vit", True), ("digits", "mine", False)]


def test_a_run_that_goes_on_needs_no_initial_weights(cli, trained) -> None:
    late = load_recipe("digits").replace(initial_weights="runs/digits_vit")
    Path("mine/checkpoint").mkdir(parents=True)
    Path("mine/checkpoint", LATEST).touch()
    late.save("mine/recipe.yaml")
    assert cli("train", "mine/recipe.yaml", "--out", "mine", "--resume").exit_code == 0
    assert trained == [("digits", "mine", True)]


def test_of_processes_that_share_a_batch_each_would_take_a_whole_one(cli, trained) -> None:
    assert cli(*TAUGHT, env={"WORLD_SIZE": "2"}).exit_code == 0
    assert trained == [("digits", "mine", False)]


def test_what_no_recipe_makes_is_refused(refused, trained) -> None:
    said = refused("train", "digits", "--set", "initial_weights=runs/digit")
    assert "digits needs runs/digit: it is not there, and no recipe makes it" in said
    for file in ("runs/digits_vit/ship/copy.safetensors", "runs/digits_vit/copy.safetensors"):
        said = refused("train", "digits", "--set", f"initial_weights={file}")
        assert f"digits needs {file}: it is not there, and no recipe makes it" in said
    assert trained == []


def test_a_point_in_a_folder_s_name_makes_no_file_of_it(refused, trained) -> None:
    Path("runs/digits_lr0.1").mkdir(parents=True)  # a run that is not over
    assert "no recipe makes it" in refused("train", "digits", "--set", "distill.teacher=runs/digits_lr0.1")
    assert trained == []


def test_weights_that_are_there_need_no_run(cli, trained) -> None:
    Path("runs/digits_vit/ship").mkdir(parents=True)
    for file in ("runs/mine.safetensors", "runs/digits_vit/ship/copy.safetensors"):
        Path(file).touch()
        assert cli("train", "digits", "--out", "mine", "--set", f"distill.teacher={file}").exit_code == 0
    assert trained == [("digits", "mine", False)] * 2


def test_a_folder_that_is_taken_is_refused_before_anything_is_trained(refused, trained) -> None:
    Path("mine").mkdir()
    Path("mine/log.csv").touch()
    assert "mine holds a run already" in refused(*TAUGHT)
    assert "looks for what it needs" in refused(*TAUGHT, "--out", "runs/digits_vit")
    assert trained == []


def test_a_run_of_another_recipe_is_taken_with_a_warning(cli, trained) -> None:
    folder = Path("runs/digits_vit")
    folder.mkdir(parents=True)
    (folder / "model.json").touch()
    today = load_recipe("digits_vit").replace(seed=3)
    today.save(folder / "recipe.yaml")
    assert "warning" not in cli(*TAUGHT).stderr
    today.replace(**{"optimizer.lr": 0.5}).save(folder / "recipe.yaml")
    said = cli(*TAUGHT, "--set", "seed=1").stderr
    assert (
        "warning: runs/digits_vit is no run of today's recipe digits_vit, but of one with another optimizer.lr" in said
    )


def test_ctrl_c_in_what_it_needs_says_that_the_same_command_goes_on(cli, trained, monkeypatch) -> None:
    def stopped(*arguments: object, **where: object) -> None:
        raise TrainingInterrupted("stopped")

    monkeypatch.setattr(engine, "train", stopped)
    result = cli(*TAUGHT)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted; the same command goes on")


def test_what_goes_wrong_in_what_it_needs_names_its_command(cli, refused, trained, monkeypatch) -> None:
    def wrong(*arguments: object, **where: object) -> None:
        raise RecipeError("max_minutes: 16 is not enough")

    monkeypatch.setattr(engine, "train", wrong)
    said = cli(*TAUGHT).stderr.splitlines()[-1]
    assert said.startswith("error: runs/digits_vit, which digits needs: max_minutes: 16 is not enough; its own command")
    assert said.endswith("s2tdpt train digits_vit")
    assert "needs:" not in refused("train", "digits", "--out", "other")


def test_two_runs_one_after_another(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = parse_overrides([QUICK[1], QUICK[3]])
    for module in (recipes, needs):
        monkeypatch.setattr(module, "load_recipe", lambda name: load_recipe(name).replace(**quick))
    monkeypatch.chdir(tmp_path)
    options = ["--set", "initial_weights=runs/digits_vit", "--set", "distill.teacher=runs/digits_vit"]
    result = cli("train", "digits", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    first, second = (json.loads(Path("runs", name, "metrics.json").read_text()) for name in ("digits_vit", "digits"))
    assert (first["model"], second["model"]) == ("vit_tiny", "s2tdpt_tiny")
    sha256 = json.loads(Path("runs/digits_vit/model.json").read_text())["sha256"]
    assert second["initial_weights"]["sha256"] == second["distill"]["sha256"] == sha256


def test_ctrl_c_says_how_to_go_on(cli, tmp_path: Path) -> None:
    code = """
import signal, sys
from s2tdpt.cli.app import app
from s2tdpt.training.step import TrainStep
calls, step = [], TrainStep.__call__
def interrupted(self, *arguments):
    calls.append(1)
    if len(calls) == 5:
        signal.raise_signal(signal.SIGINT)
    return step(self, *arguments)
TrainStep.__call__ = interrupted
app(sys.argv[1:], prog_name="s2tdpt")
"""
    command = [sys.executable, "-c", code, "train", "digits", *QUICK, "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    *_, said = done.stderr.splitlines()
    name, *arguments = shlex.split(said.partition(": ")[2])
    assert name == "s2tdpt"
    assert not (tmp_path / "model.safetensors").exists()
    assert cli(*arguments).exit_code == 0
    assert (tmp_path / "model.safetensors").exists()


def test_demo_warns_of_idle_attention(capsys: pytest.CaptureFixture[str]) -> None:
    from s2tdpt.demo import warn_of_idle_attention

    warn_of_idle_attention([0.005, 0.5])
    assert capsys.readouterr().err == ""
    warn_of_idle_attention([0.2, 0.0049, 0.51])
    lines = capsys.readouterr().err.splitlines()
    assert ["block 2" in lines[0], "block 3" in lines[1], len(lines)] == [True, True, 2]


def test_demo_compares_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from s2tdpt import demo

    quick = {"model.options": {"embed_dim": 32, "stem_channels": [8, 16, 32]}, "schedule.time_steps": "1:1"}
    load_recipe = demo.load_recipe
    monkeypatch.setattr(demo, "load_recipe", lambda name: load_recipe(name).replace(**quick))
    (tmp_path / "demo/ann").mkdir(parents=True)
    (tmp_path / "demo/ann/metrics.json").write_text("of an earlier demo")
    (tmp_path / "demo/s2tdpt").mkdir()
    (tmp_path / "demo/s2tdpt/notes.txt").write_text("of somebody else")
    returned = demo.run(tmp_path / "demo", device="cpu")
    metrics = json.loads((tmp_path / "demo/metrics.json").read_text())
    assert metrics == returned
    assert (tmp_path / "demo/s2tdpt/notes.txt").exists()
    for key in ("test_top1", "ann_test_top1", "mean_firing_rate", "synaptic_firing_rate"):
        assert 0 <= metrics[key] <= 1
    assert len(metrics["attention_firing_rate"]) == 2
    assert 0 < metrics["energy_mj"] < metrics["ann_energy_mj"]
    assert metrics["train_seconds"] > 0
    page = (tmp_path / "demo/report.html").read_text()
    assert len(page) < 6_000_000
    assert "Grad-CAM" in page
    printed = capsys.readouterr().out
    for shown in ("accuracy on 360 test digits", f"{metrics['ann_test_top1']:.2%}", "block 2", "report.html"):
        assert shown in printed
