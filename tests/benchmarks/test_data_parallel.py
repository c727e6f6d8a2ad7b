"""The benchmark of data parallel training runs as two processes on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import read

ROOT = Path(__file__).parents[2]


def test_two_processes_race_against_one(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "benchmarks.data_parallel", "--smoke", "--results", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    written = read(tmp_path / "data_parallel.csv")
    assert [row.peer for row in written] == ["one GPU, CUDA graph", "one GPU, eager"]
    fastest = max(row.peer_median or 0 for row in written)
    for row in written:
        assert row.limit == pytest.approx(2 * fastest, rel=1e-3)
        assert row.command.startswith("torchrun --standalone --nproc-per-node 2 -m benchmarks.data_parallel")
