"""The ablation's queue: what runs, in which order, and what happens to runs that fail or have no time."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from results import ablation
from results.ablation import Job, Queue, items
from s2tdpt.training.recipe import load_recipe

WRITES = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); (p / 'metrics.json').touch()"
WAITS = "import time; time.sleep(5)"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments with which runs are taken into the results, which they are not."""
    calls: list[list[str]] = []
    monkeypatch.setattr(ablation.add, "main", lambda words: calls.append(words) or 0)
    monkeypatch.setattr(ablation, "LOOK_EVERY", 0.02)
    return calls


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes of the queue."""
    found: list[subprocess.Popen[bytes]] = []
    launch = Queue._launch
    monkeypatch.setattr(Queue, "_launch", lambda *given: found.append(launch(*given)) or found[-1])
    return found


def job(root: Path, item: str, code: str = WRITES, needs: str = "") -> Job:
    folder = root / f"{item}-seed0"
    command = (sys.executable, "-c", code, str(folder))
    return Job(item, 0, folder, command, root / f"{needs}-seed0" if needs else None)


def queue(jobs: list[Job], devices: list[str], **asked: Any) -> Queue:
    options = {"minutes": None, "commit": "abc1234", "results": Path("results"), **asked}
    return Queue(jobs, devices, argparse.Namespace(**options))


def test_every_item_is_one_change_of_the_recipe() -> None:
    base = load_recipe("two_minutes")
    assert base.max_minutes is None
    assert base.data.holdout == 5000
    found = {name: base.replace(**changes) for name, changes in items(base, Path("runs/vit-seed0")).items()}
    assert found["baseline"] == base
    assert len({recipe.to_yaml() for recipe in found.values()}) == len(found) >= 10
    assert found["vit"].model.name == "vit_4_384"
    assert found["no-jump"].model.options == {"window": {"jump": False}}


def test_runs_share_devices_and_wait_for_what_they_need(tmp_path: Path, taken: list[list[str]]) -> None:
    jobs = [job(tmp_path, "distill", needs="vit"), job(tmp_path, "baseline"), job(tmp_path, "vit")]
    assert queue(jobs, ["0", "1"]).run() == 0
    order = [words[words.index("--ablation") + 1] for words in taken]
    assert sorted(order) == ["baseline", "distill", "vit"]
    assert order.index("vit") < order.index("distill")
    assert all(words[-2:] == ["--commit", "abc1234"] for words in taken)
    assert sorted(log.name for log in tmp_path.glob("*.log")) == [f"{item}-seed0.log" for item in sorted(order)]


def test_what_is_finished_is_not_run_again(tmp_path: Path, taken: list[list[str]]) -> None:
    (tmp_path / "baseline-seed0").mkdir()
    (tmp_path / "baseline-seed0" / "metrics.json").touch()
    assert queue([job(tmp_path, "baseline", "raise SystemExit(3)")], ["0"]).run() == 0
    assert len(taken) == 1


def test_a_failed_run_fails_what_needs_it_and_nothing_else(
    tmp_path: Path, taken: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(tmp_path, "vit", "raise SystemExit(2)"), job(tmp_path, "distill", needs="vit"), job(tmp_path, "plif")]
    assert queue(jobs, ["0"]).run() == 1
    assert [words[words.index("--ablation") + 1] for words in taken] == ["plif"]
    said = capsys.readouterr().out
    assert "vit, seed 0 failed: exit code 2" in said
    assert "distill, seed 0 failed" in said


def test_when_there_is_no_time_left_runs_are_interrupted(
    tmp_path: Path, taken: list[list[str]], launched: list[Any]
) -> None:
    jobs = [job(tmp_path, "baseline", WAITS), job(tmp_path, "plif")]
    assert queue(jobs, ["0"], minutes=0.005).run() == 130
    assert taken == []
    assert [process.returncode for process in launched] == [-signal.SIGTERM]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_while_a_process_starts_ends_it(
    moment: str, tmp_path: Path, taken: list[list[str]], launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Queue._launch

    def interrupted(*given: Any) -> Any:
        if moment == "before":
            signal.raise_signal(signal.SIGINT)
        process = launch(*given)
        if moment == "after":
            signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(Queue, "_launch", interrupted)
    assert queue([job(tmp_path, item, WAITS) for item in ("baseline", "plif")], ["0"]).run() == 130
    assert [process.returncode for process in launched] == [-signal.SIGTERM]


def test_a_queue_that_fails_leaves_no_process(tmp_path: Path, taken: list[list[str]], launched: list[Any]) -> None:
    lost = dataclasses.replace(job(tmp_path, "plif"), command=(str(tmp_path / "nowhere"),))
    with pytest.raises(FileNotFoundError):
        queue([job(tmp_path, "baseline", WAITS), lost], ["0", "1"]).run()
    assert [process.wait() for process in launched] == [-signal.SIGTERM]


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
