"""On CI a test that is left out for any reason but a missing GPU fails the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
GPU = "@pytest.mark.gpu\ndef test_gpu(): pytest.skip('needs a CUDA device')\n"
OTHER = "@pytest.mark.skip(reason='no time')\ndef test_other(): pass\n"
MODULE = "pytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize(
    ("tests", "ci", "workers", "passes"),
    [
        (GPU, "true", [], True),
        (GPU + OTHER, "true", ["-n", "2"], False),
        (GPU + OTHER, "", [], True),
        (MODULE, "true", ["-n", "2"], False),
    ],
    ids=["gpu", "another reason", "not on CI", "whole module"],
)
def test_skips_fail_on_ci_only(tmp_path: Path, tests: str, ci: str, workers: list[str], passes: bool) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    (tmp_path / "test_two.py").write_text(f"import pytest\n{tests}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"CI": ci}
    command = [sys.executable, "-m", "pytest", *workers]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is passes, done.stdout + done.stderr
    assert ("ERROR: skipped" in done.stdout) is not passes
