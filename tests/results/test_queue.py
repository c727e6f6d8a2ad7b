"""The queue of runs: what runs, in which order, and what happens to runs that fail or have no time."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from results import queue as module
from results.queue import Job, Queue

WRITES = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); (p / 'metrics.json').touch()"
WAITS = "import time; time.sleep(5)"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the jobs that are done, in order."""
    monkeypatch.setattr(module, "LOOK_EVERY", 0.02)
    return []


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes of the queue."""
    found: list[subprocess.Popen[bytes]] = []
    launch = Queue._launch
    monkeypatch.setattr(Queue, "_launch", lambda *given: found.append(launch(*given)) or found[-1])
    return found


def job(root: Path, name: str, code: str = WRITES, needs: str = "", **options: Any) -> Job:
    command = (sys.executable, "-c", code, str(root / name))
    return Job(name, root / name, command, needs=tuple(root / need for need in needs.split()), **options)


def run(jobs: list[Job], devices: list[str], taken: list[str], **options: Any) -> int:
    return Queue(jobs, devices, lambda job: taken.append(job.name) or True, commit="abc1234", **options).run()


def test_runs_share_devices_and_wait_for_what_they_need(tmp_path: Path, taken: list[str]) -> None:
    jobs = [job(tmp_path, "student", needs="teacher"), job(tmp_path, "other"), job(tmp_path, "teacher")]
    assert run(jobs, ["0", "1"], taken) == 0
    assert sorted(taken) == ["other", "student", "teacher"]
    assert taken.index("teacher") < taken.index("student")
    assert sorted(log.name for log in tmp_path.glob("*.log")) == ["other.log", "student.log", "teacher.log"]


def test_a_run_has_its_devices_to_itself_and_their_names(tmp_path: Path, taken: list[str]) -> None:
    says = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['S2TDPT_COMMIT'])"
    wide = f"{WRITES}; import time; time.sleep(0.3); {says}"
    jobs = [job(tmp_path, "wide", wide, processes=2), job(tmp_path, "narrow", f"{WRITES}; {says}")]
    assert run(jobs, ["4", "7"], taken) == 0
    assert taken == ["wide", "narrow"]
    assert (tmp_path / "wide.log").read_text() == "4,7 abc1234\n"
    assert (tmp_path / "narrow.log").read_text() == "4 abc1234\n"


def test_a_wide_run_is_not_passed_by_narrow_ones(tmp_path: Path, taken: list[str]) -> None:
    slow = f"{WRITES}; import time; time.sleep(0.3)"
    jobs = [job(tmp_path, "one", slow), job(tmp_path, "wide", processes=2), *(job(tmp_path, n) for n in ("a", "b"))]
    assert run(jobs, ["0", "1"], taken) == 0
    assert taken[:2] == ["one", "wide"]


def test_what_is_finished_is_not_run_again(tmp_path: Path, taken: list[str]) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "metrics.json").touch()
    assert run([job(tmp_path, "done", "raise SystemExit(3)")], ["0"], taken) == 0
    assert taken == ["done"]


def test_what_comes_after_the_training_runs_until_its_products_are_there(tmp_path: Path, taken: list[str]) -> None:
    touch = (sys.executable, "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()")
    product = tmp_path / "run" / "measured.json"
    whole = job(tmp_path, "run", after=((*touch, str(product)),), products=(product,))
    assert run([whole], ["0"], taken) == 0
    assert product.exists()
    product.unlink()  # as if it had been interrupted there: a trained run goes through its training at once
    assert run([dataclasses.replace(whole, train=(sys.executable, "-c", ""))], ["0"], taken) == 0
    assert product.exists()
    assert run([dataclasses.replace(whole, train=("nowhere",))], ["0"], taken) == 0
    assert taken == ["run"] * 3


def test_a_run_that_cannot_be_measured_is_taken_all_the_same_and_told(
    tmp_path: Path, taken: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    after = ((sys.executable, "-c", "raise SystemExit(4)"), (sys.executable, "-c", "print('second')"))
    jobs = [job(tmp_path, "teacher", after=after), job(tmp_path, "student", needs="teacher")]
    assert run(jobs, ["0"], taken) == 1
    assert taken == ["teacher", "student"]
    assert "teacher: -c raise SystemExit(4): exit code 4" in capsys.readouterr().out
    assert "second" in (tmp_path / "teacher.log").read_text()


def test_a_run_waits_for_all_that_it_needs(tmp_path: Path, taken: list[str]) -> None:
    jobs = [job(tmp_path, "last", needs="one two"), job(tmp_path, "one"), job(tmp_path, "two")]
    assert run(jobs, ["0"], taken) == 0
    assert taken == ["one", "two", "last"]


def test_a_failed_run_fails_what_needs_it_and_nothing_else(
    tmp_path: Path, taken: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        job(tmp_path, "vit", "print('error: no such thing'); raise SystemExit(2)"),
        job(tmp_path, "distill", needs="plif vit"),
        job(tmp_path, "plif"),
    ]
    assert run(jobs, ["0"], taken) == 1
    assert taken == ["plif"]
    said = capsys.readouterr().out
    assert "vit failed: exit code 2, see its log (error: no such thing)" in said
    assert f"distill failed: {tmp_path / 'vit'} failed" in said


def test_when_there_is_no_time_left_runs_are_interrupted(tmp_path: Path, taken: list[str], launched: list[Any]) -> None:
    assert run([job(tmp_path, "one", WAITS), job(tmp_path, "two")], ["0"], taken, minutes=0.005) == 130
    assert taken == []
    assert [process.returncode for process in launched] == [-signal.SIGTERM]


def test_an_interrupted_run_hears_one_signal_and_nothing_follows(
    tmp_path: Path, taken: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As `s2tdpt train` does: at the first signal it saves, which takes a while; a second one would end it at once."""
    saves = (
        "import pathlib, signal, sys, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: heard.append(1))\n"
        "print('started', flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "print(len(heard), 'signals', flush=True)\n"
        "raise SystemExit(130)\n"
    )
    follows = (sys.executable, "-c", "print('measured')")
    handler = signal.getsignal(signal.SIGINT)
    assert run([job(tmp_path, "one", saves, after=(follows,)), job(tmp_path, "two")], ["0"], taken, minutes=0.01) == 130
    assert (tmp_path / "one.log").read_text().split("\n")[1:] == ["1 signals", ""]
    assert "failed" not in capsys.readouterr().out
    assert taken == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_that_is_trained_when_time_is_up_is_not_measured(tmp_path: Path, taken: list[str]) -> None:
    saves = f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); time.sleep(1); {WRITES}"
    follows = (sys.executable, "-c", "print('measured')")
    assert run([job(tmp_path, "one", saves, after=(follows,))], ["0"], taken, minutes=0.01) == 130
    assert (tmp_path / "one.log").read_text() == ""


def test_a_training_that_fails_is_not_taken_for_an_older_one(tmp_path: Path, taken: list[str]) -> None:
    broken = job(tmp_path, "run", f"{WRITES}; raise SystemExit(3)", products=(tmp_path / "never",))
    assert run([broken], ["0"], taken) == 1
    assert taken == []


def test_a_student_goes_on_where_its_teacher_is_trained_but_not_taken_in(tmp_path: Path, taken: list[str]) -> None:
    jobs = [job(tmp_path, "teacher"), job(tmp_path, "student", needs="teacher")]
    assert Queue(jobs, ["0"], lambda job: job.name == "student" and not taken.append(job.name)).run() == 1
    assert taken == ["student"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_while_a_process_starts_ends_it(
    moment: str, tmp_path: Path, taken: list[str], launched: list[Any], monkeypatch: pytest.MonkeyPatch
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
    assert run([job(tmp_path, name, WAITS) for name in ("one", "two")], ["0"], taken) == 130
    assert [process.returncode for process in launched] == [-signal.SIGTERM]


def test_a_queue_that_fails_leaves_no_process(tmp_path: Path, taken: list[str], launched: list[Any]) -> None:
    lost = dataclasses.replace(job(tmp_path, "lost"), train=(str(tmp_path / "nowhere"),))
    with pytest.raises(FileNotFoundError):
        run([job(tmp_path, "one", WAITS), lost], ["0", "1"], taken)
    assert [process.wait() for process in launched] == [-signal.SIGTERM]
