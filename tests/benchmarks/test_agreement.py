"""How far fast modes answer as float32 does: one row a mode, of what was found."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import agreement


def test_a_row_for_each_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(model: nn.Module, device: torch.device) -> dict[str, agreement.Mode]:
        def other(x: Tensor) -> Tensor:
            return -model(x)

        return {"the same": model, "another": other}

    monkeypatch.setattr(agreement, "modes", some)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # so that it is put back
    argv = ["s2tdpt_tiny.digits", "--data", "digits", "--limit", "40", "--device", "cpu"]
    assert agreement.main([*argv, "--results", str(tmp_path)]) == 0
    with (tmp_path / "agreement.csv").open(newline="") as file:
        same, other = csv.DictReader(file)
    assert (same["mode"], same["n"], float(same["changed_predictions"])) == ("the same", "40", 0)
    assert same["command"] == " ".join(["python -m benchmarks.agreement", *argv])
    assert float(same["top1"]) == float(same["top1_compiled"]) > 0.9
    assert float(other["changed_predictions"]) == 1
    assert float(other["top1_compiled"]) < 0.1


def test_unknown_weights_are_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement.main(["no_such.model"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
