"""Training several recipes in a queue: what is planned, and a real run from its recipe to its row."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from results import train
from results.queue import Job
from s2tdpt.errors import S2tdptError
from s2tdpt.training import needs
from s2tdpt.training.checkpoint import LATEST
from s2tdpt.training.recipe import load_recipe

HEAD = "goal,data,what,seeds,top1,top1_aim,energy_mj,energy_aim,recipe\n"


def plan(tmp_path: Path, *names: str, **options: Any) -> list[tuple[Job, list[str]]]:
    asked = {"names": names, "missing": False, "processes": 1, "variant": None, "runs": Path("runs"), "set": []}
    asked |= {"results": tmp_path, "commit": None, "data_root": None, **options}
    return list(train.plan(argparse.Namespace(**asked)))


def after(words: tuple[str, ...] | list[str], option: str) -> str:
    return words[list(words).index(option) + 1]


def test_seeds_have_folders_of_their_own(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "cifar10_fast", "cifar10_fast:2", "cifar10_fast:0")
    assert [str(job.folder) for job, _ in jobs] == ["runs/cifar10_fast", "runs/cifar10_fast-seed2"]
    assert [after(job.train, "--seed") for job, _ in jobs] == ["0", "2"]
    assert all(job.train[:5] == (sys.executable, "-m", "s2tdpt", "train", "cifar10_fast") for job, _ in jobs)
    assert [job.needs for job, _ in jobs] == [(), ()]


def test_a_teacher_that_is_not_there_is_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    taught = {"set": ["distill.teacher=runs/vit_h_cifar100", "spike_cost=0.2"], "variant": "dear"}
    (teacher, _), (one, words), (two, _) = plan(tmp_path, "cifar100_t1", "cifar100_t1:1", **taught)
    assert (teacher.folder, teacher.needs) == (Path("runs/vit_h_cifar100"), ())
    assert "spike_cost=0.2" in one.train
    assert "spike_cost=0.2" not in teacher.train
    assert one.needs == two.needs == (teacher.folder,)
    assert one.folder == Path("runs/cifar100_t1-dear-seed0")
    assert after(words, "--variant") == "dear"

    teacher.folder.mkdir(parents=True)
    (teacher.folder / "model.json").touch()
    assert [job.needs for job, _ in plan(tmp_path, "cifar100_t1", **taught)] == [()]


def test_a_run_that_only_others_need_replaces_none_in_results(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    taught = {"set": ["distill.teacher=runs/digits_vit"], "variant": "taught"}
    assert all(words for _, words in plan(tmp_path, "digits", **taught))
    (tmp_path / "digits_vit/two-gpus-seed0").mkdir(parents=True)
    (teacher, words), (_, own) = plan(tmp_path, "digits", **taught)
    assert (words, bool(own)) == ([], True)
    assert train._take(teacher, words)
    assert "digits_vit, seed 0: not taken into results/" in capsys.readouterr().out
    monkeypatch.setattr(train, "load_recipe", lambda name: load_recipe(name).replace(initial_weights=beginning[name]))
    beginning = {"digits": "runs/digits_vit", "digits_vit": None}
    assert all(words for _, words in plan(tmp_path, "digits", "digits_vit"))  # this one was asked for


def test_initial_weights_that_are_not_there_are_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = ["initial_weights=runs/vit_cifar10", "distill.teacher=runs/vit_h_cifar100"]
    *first, (student, _) = plan(tmp_path, "cifar100_t1", set=both, variant="x")
    assert [job.folder for job, _ in first] == [Path("runs/vit_cifar10"), Path("runs/vit_h_cifar100")]
    assert student.needs == tuple(job.folder for job, _ in first)
    same = [change.replace("vit_cifar10", "vit_h_cifar100") for change in both]
    assert len(plan(tmp_path, "cifar100_t1", set=same, variant="x")) == 2


def test_a_run_that_has_begun_needs_no_initial_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"set": ["initial_weights=runs/digits_vit"], "variant": "late"}
    assert len(plan(tmp_path, "digits", **changes)) == 2
    begun = Path("runs/digits-late-seed0")
    begun.mkdir(parents=True)
    load_recipe("digits").replace(initial_weights="runs/digits_vit").save(begun / "recipe.yaml")
    assert len(plan(tmp_path, "digits", **changes)) == 2  # stopped before its first checkpoint
    (begun / "checkpoint").mkdir()
    (begun / "checkpoint" / LATEST).touch()
    ((job, _),) = plan(tmp_path, "digits", **changes)
    assert (job.folder, job.needs, job.train[-1]) == (begun, (), "--resume")


def test_what_they_need_themselves_is_trained_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (train, needs):
        monkeypatch.setattr(module, "load_recipe", lambda name: chain[name])
    chain = {name: load_recipe("digits") for name in ("cifar10_fast", "cifar100_fast", "digits")}
    chain["digits"] = chain["digits"].replace(initial_weights="./runs/cifar10_fast")
    chain["cifar10_fast"] = chain["cifar10_fast"].replace(initial_weights="runs/cifar100_fast/model.safetensors")
    jobs = [job for job, _ in plan(tmp_path, "digits")]
    folders = [Path("runs/cifar100_fast"), Path("runs/cifar10_fast")]
    assert [job.folder for job in jobs[:2]] == folders
    assert [job.needs for job in jobs] == [(), (folders[0],), (folders[1],)]


def test_a_teacher_is_no_variant_of_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ["distill.teacher=runs/vit_h_cifar100"]
    (_, teacher), (_, student) = plan(tmp_path, "cifar100_t1", set=changes, variant="own-teacher")
    assert "--variant" not in teacher
    assert after(student, "--variant") == "own-teacher"


def test_several_gpus_share_a_run_s_batch(tmp_path: Path) -> None:
    ((job, words),) = plan(tmp_path, "cifar10_fast", processes=2)
    assert (job.processes, str(job.folder)) == (2, "runs/cifar10_fast-2-gpus-seed0")
    assert job.train[1:4] == ("-m", "torch.distributed.run", "--standalone")
    assert "data.batch_size=256" in job.train
    assert "--variant" not in words
    with pytest.raises(S2tdptError, match="cannot share the 512 images"):
        plan(tmp_path, "cifar10_fast", processes=3)


def test_a_run_is_resumed_unless_its_recipe_is_another(tmp_path: Path) -> None:
    where = {"runs": tmp_path, "data_root": "/somewhere"}
    ((job, _),) = plan(tmp_path, "cifar10_fast", **where)
    assert "--resume" not in job.train
    assert after(job.train, "--data-root") == "/somewhere"
    job.folder.mkdir()
    load_recipe("cifar10_fast").save(job.folder / "recipe.yaml")
    ((job, _),) = plan(tmp_path, "cifar10_fast", **where)
    assert job.train[-1] == "--resume"
    load_recipe("cifar10_fast").replace(spike_cost=2.0).save(job.folder / "recipe.yaml")
    with pytest.raises(S2tdptError, match=r"holds a run with another spike_cost \(2.0, not 0.0\)"):
        plan(tmp_path, "cifar10_fast", **where)


def test_what_would_be_trained_can_be_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(tmp_path), "--devices", "cpu"]
    assert train.main(["digits", "digits:1", "--list", *where]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("digits, seed 0: ")
    assert "s2tdpt train digits" in second
    assert list(tmp_path.iterdir()) == []


def test_held_out_runs_are_measured_but_not_shipped(tmp_path: Path) -> None:
    ((whole, _),) = plan(tmp_path, "cifar10_fast")
    ((part, _),) = plan(tmp_path, "cifar10_fast", set=["data.holdout=5000"], variant="held-out")
    assert [words[2] for words in whole.after] == ["results.measure", "results.ship"]
    assert [words[2] for words in part.after] == ["results.measure"]


def test_what_is_missing_are_the_seeds_that_no_folder_holds(tmp_path: Path) -> None:
    goals = (
        "1,cifar10,,3,,,,,cifar10_fast\n3,cifar10,,1,,,,,vit_cifar10\n2,cifar10,,1,,,,,vit_cifar10\n9,cifar10,,1,,,,,\n"
    )
    (tmp_path / "goals.csv").write_text(HEAD + goals)
    (tmp_path / "cifar10_fast/seed1").mkdir(parents=True)
    jobs = plan(tmp_path, missing=True)
    assert [job.name for job, _ in jobs] == ["cifar10_fast, seed 0", "cifar10_fast, seed 2", "vit_cifar10, seed 0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cifar100_fats"], "cifar100_fats: no such recipe (did you mean cifar100_fast?)"),
        (["cifar100:x"], "'cifar100:x': a run is RECIPE or RECIPE:SEED, as in cifar100:1"),
        (["digits", "--processes", "2", "--devices", "cpu"], "--processes 2 needs as many GPUs, here: cpu"),
        (["digits", "--devices", "97"], "--devices 97: there is no such device here, only"),
        ([], "nothing to train"),
        (["digits", "--set", "distill.teacher=runs/nobody", "--variant", "x"], "needs runs/nobody: it is not there"),
        (["digits", "--set", "spike_cost=1.0"], "digits: --set changes spike_cost (0.0, not 1.0): name such runs with"),
    ],
)
def test_what_cannot_be_trained_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_is_measured_made_ready_to_ship_and_taken_in(tmp_path: Path) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--commit", "abc1234"]
    words = ["digits_vit:3", "--devices", "cpu", "--set", "schedule.time_steps=1:2", "--variant", "short", *where]
    log = tmp_path / "runs" / "digits_vit-short-seed3.log"
    assert train.main(words) == 0, log.read_text()
    with (tmp_path / "results" / "accuracy.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["seed"], row["commit"]) == ("digits_vit/short-seed3", "3", "abc1234")
    assert float(row["energy_mj"]) > 0
    assert "--set schedule.time_steps=1:2" in row["command"]
    assert (tmp_path / "runs/digits_vit-short-seed3/ship/vit_tiny.digits.safetensors").exists()
    told = log.read_text()
    assert train.main(words) == 0
    assert log.read_text() == told
