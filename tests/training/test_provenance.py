"""Where a run came from: the commit is what the environment says, or that of the checkout."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from s2tdpt.errors import CheckpointError
from s2tdpt.training import folder


def test_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.setenv("S2TDPT_COMMIT", "1234567")
    assert folder.provenance(torch.device("cpu"), 1)["commit"] == "1234567"
    monkeypatch.delenv("S2TDPT_COMMIT")
    assert folder.provenance(torch.device("cpu"), 1)["commit"] is None


def test_a_file_that_cannot_be_written_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*: name another folder with --out"):
        folder.write_file(tmp_path / "file" / "recipe.yaml", "")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder.checkpoint, "write_atomic", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*: free some space"):
        folder.write_file(tmp_path / "recipe.yaml", "")


def test_commit_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def git(command: list[str], **_: Any) -> Any:
        answer = "0123abc-dirty\n" if "describe" in command else "folder.py\n"
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(subprocess, "run", git)
    monkeypatch.delenv("S2TDPT_COMMIT", raising=False)
    assert folder.provenance(torch.device("cpu"), 1)["commit"] == "0123abc-dirty"
    monkeypatch.setenv("S2TDPT_COMMIT", "1234567")  # a copy elsewhere may have a git that knows another commit
    assert folder.provenance(torch.device("cpu"), 1)["commit"] == "1234567"
