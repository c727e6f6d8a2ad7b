"""Every benchmark's code runs on a CPU with tiny shapes, and none says anything about speed while parity is red."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNS = {
    "train_step": {
        "training step smoke T=2 batch 2 float32, eager",
        "training step smoke T=2 batch 2 float32, CUDA graph",
    },
    "inference": {
        "inference smoke T=2 batch 2 float32, CUDA graph",
        "inference smoke T=2 batch 2 packed spikes, 8-bit weights, CUDA graph",
    },
    "stdp_attention": {"STDP attention fwd+bwd N=16", "STDP attention fwd+bwd N=130"},
    "cpu_inference": {
        "CPU evaluation smoke T=2 batch 2, plain float32",
        "CPU evaluation smoke T=2 batch 2, compiled float32",
    },
    "kernels": {"products and convolutions", "attention", "norm, residual, neuron, pooling"},
}
# One process, since Triton decides at its import whether it interprets: each benchmark, then some of them broken.
WORKER = """
import contextlib, importlib, io, json, sys
from pathlib import Path
from benchmarks import common

folder, names, found = Path(sys.argv[1]), sys.argv[2].split(","), {}

def go(label, name, *flags):
    module, said = importlib.import_module(f"benchmarks.{name}"), io.StringIO()
    options = {"batch": 16, "gpu": False} if name == "cpu_inference" else {}
    argv = ["--smoke", "--results", str(folder / label), *flags]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = common.start(module.main, name, module.__doc__, argv, **options)
    found[label] = {"code": code, "said": said.getvalue().strip().splitlines()}

for name in names:
    go(name, name)

from s2tdpt.models import fused
from s2tdpt.ops.stdp import triton
from benchmarks import ours

forward = fused.forward_features
fused.forward_features = lambda model, x: 1.02 * forward(model, x)
go("wrong forward pass, training", "train_step")
go("wrong forward pass, inference", "inference")
fused.forward_features = forward
attention = triton.attention
triton.attention = lambda q, k, v, window, scale: attention(q, k, v, window, 1.02 * scale)
go("wrong attention", "stdp_attention")
triton.attention = attention
ours.Inference.__call__ = lambda self: self.recorded() + 1
go("wrong recording", "inference")
from s2tdpt.inference.packed import PackedEngine
ours.Inference.__call__ = lambda self: self.recorded()
logits = PackedEngine.logits
PackedEngine.logits = lambda self, x, T: 1.02 * logits(self, x, T)
go("wrong packed spikes", "inference")
PackedEngine.logits = logits
from s2tdpt.inference import CompiledModel
right = CompiledModel.forward
CompiledModel.forward = lambda self, x: 1.02 * right(self, x)
go("wrong compiled model", "cpu_inference")
CompiledModel.forward = right

go("alone", "data_parallel")
sys.modules["spikingjelly.activation_based.model.spikformer"] = None
go("no peer", "cpu_inference")
go("no peer wanted", "cpu_inference", "--no-peers")
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-c", WORKER, str(folder), ",".join(RUNS)]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def rows(file: Path) -> list[Any]:
    from benchmarks.rows import read

    return read(file)


@pytest.mark.parametrize("name", RUNS)
def test_every_benchmark_runs_and_writes_its_rows(found: dict[str, Any], folder: Path, name: str) -> None:
    assert found[name]["code"] == 0
    written = rows(folder / name / f"{name}.csv")
    assert RUNS[name] <= {row.what for row in written}
    assert len(found[name]["said"]) >= len(written)
    for row in written:
        assert row.median >= 0
        assert row.command == f"python -m benchmarks.{name} --smoke"
        assert "torch" in row.versions
        assert row.commit
        assert row.hardware


@pytest.mark.parametrize("name", ["train_step", "inference", "cpu_inference", "stdp_attention"])
def test_rows_stand_beside_every_peer_and_the_limit(found: dict[str, Any], folder: Path, name: str) -> None:
    written = rows(folder / name / f"{name}.csv")
    peers = {row.peer for row in written}
    wanted = {
        "train_step": {"SpikingJelly 2.0.0 eager", "SpikingJelly 2.0.0 compiled"},
        "inference": {"SpikingJelly 2.0.0 eager", "SpikingJelly 2.0.0 compiled"},
        "cpu_inference": {"SpikingJelly 2.0.0 eager float32", "SpikingJelly 2.0.0 eager bfloat16"},
    }
    if name in wanted:
        assert peers == wanted[name]
    else:
        assert {"dense equation in PyTorch", "scaled_dot_product_attention, flash"} <= peers
    for row in written:
        faster = row.median / row.peer_median if row.unit == "images/s" else row.peer_median / row.median
        assert row.ratio == pytest.approx(faster, rel=1e-3)
        away = row.limit / row.median if row.unit == "images/s" else row.median / row.limit
        assert row.distance == pytest.approx(away, rel=1e-3)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("wrong forward pass, training", "train_step"),
        ("wrong forward pass, inference", "inference"),
        ("wrong attention", "stdp_attention"),
        ("wrong recording", "inference"),
        ("wrong packed spikes", "inference"),
        ("wrong compiled model", "cpu_inference"),
    ],
)
def test_red_parity_refuses(found: dict[str, Any], folder: Path, label: str, name: str) -> None:
    assert found[label]["code"] == 1
    (line,) = found[label]["said"]
    assert line.startswith("refused: parity is red: ")
    assert not (folder / label / f"{name}.csv").exists()


def test_data_parallel_says_how_to_start_it(found: dict[str, Any]) -> None:
    assert found["alone"]["code"] == 2
    assert found["alone"]["said"][-1].endswith("torchrun --standalone --nproc-per-node 2 -m benchmarks.data_parallel")


def test_a_missing_peer_is_named_with_the_way_around_it(found: dict[str, Any], folder: Path) -> None:
    assert found["no peer"]["code"] == 2
    assert "pip install --no-deps spikingjelly" in found["no peer"]["said"][-1]
    assert "--no-peers" in found["no peer"]["said"][-1]
    assert found["no peer wanted"]["code"] == 0
    assert {row.peer for row in rows(folder / "no peer wanted" / "cpu_inference.csv")} == {""}
