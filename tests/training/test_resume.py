"""A run killed at any moment, and resumed, ends with the very weights of one that was left alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s2tdpt.training.recipe import Recipe

KILLS = 20

# Runs are forked from one process that has everything imported. Each child counts the lines of Python that it executes
# in one part of the engine and sends itself SIGKILL, which nothing can catch, at a line drawn beforehand: so all parts
# of a run are hit, and the draw can be repeated.
CHAIN = """
import json, os, random, signal, sys
from pathlib import Path
from s2tdpt.training import engine
from s2tdpt.training.recipe import load_recipe

PARTS = ("start", "training", "saving")

recipe, base, kills = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def child(out, part=None, deadline=None):
    counts = dict.fromkeys(PARTS, 0)

    def trace(frame, event, argument):
        folder, name = os.path.split(frame.f_code.co_filename)
        if not folder.endswith(("training", "models")):
            return None
        after_start = "saving" if name in ("checkpoint.py", "weights.py") else "training"

        def line(frame, event, argument):
            if event == "line":
                if (name, frame.f_code.co_name) == ("step.py", "__call__"):
                    counts["began"] = 1
                key = after_start if "began" in counts else "start"
                counts[key] += 1
                if key == part and counts[key] == deadline:
                    os.write(report[1], f"{name}:{frame.f_code.co_name}".encode())
                    os.kill(os.getpid(), signal.SIGKILL)
            return line

        return line

    report = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.settrace(trace)
        engine.train(recipe, out, resume=True, device="cpu", progress=False)
        sys.settrace(None)
        os.write(report[1], json.dumps(counts).encode())
        os._exit(0)
    os.close(report[1])
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), os.read(report[0], 10_000).decode()

engine.train(recipe, base / "warm", device="cpu", progress=False)
code, counts = child(base / "whole")
assert code == 0, counts
lines = json.loads(counts)
draw = random.Random(0)
deaths = []
for number in range(kills):
    part = PARTS[number % len(PARTS)]
    most = lines[part] // (1 if part == "start" else 9)  # a ninth of the run at most, so that it outlasts the kills
    code, where = child(base / "killed", part, draw.randint(1, most))
    found = base / "killed" / "checkpoint" / "checkpoint.json"
    step = json.loads(json.loads(found.read_bytes())["body"])["meta"]["step"] if found.exists() else 0
    deaths.append({"code": code, "part": part, "where": where, "step": step})
code, counts = child(base / "killed")
print(json.dumps({"deaths": deaths, "code": code}))
"""


@dataclass
class Chain:
    folder: Path
    deaths: list[dict[str, Any]]


@pytest.fixture(scope="module")
def chain(pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One run left alone, and one killed 20 times, that saves after each step."""
    folder = tmp_path_factory.mktemp("chain")
    recipe = Recipe.from_dict(
        {
            "name": "killed",
            "model": {
                "name": "s2tdpt_tiny",
                "options": {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1, "stem_channels": [2, 2, 2]},
            },
            "data": {"name": f"folder:{pictures}", "batch_size": 2, "eval_batch_size": 12},
            "augment": {"flip": True, "shift": 1, "mixup": 0.2, "mix_probability": 0.5},
            "optimizer": {"name": "muon", "lr": 0.02, "weight_decay": 0.01, "clip_grad_norm": 1.0},
            "schedule": {"time_steps": "1:3,2:3"},
            "ema_decay": 0.9,
            "norm_batches": 3,
            "distill": {"teacher": str(teacher)},
            "spike_cost": 0.1,
            "checkpoint_every_minutes": 0,
        }
    )
    recipe.save(folder / "recipe.yaml")
    command = [sys.executable, "-c", CHAIN, str(folder / "recipe.yaml"), str(folder), str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-2000:]
    outcome = json.loads(result.stdout)
    assert outcome["code"] == 0, result.stderr[-2000:]
    return Chain(folder, outcome["deaths"])


@pytest.mark.slow
def test_every_kill_hit_a_run_that_was_under_way(chain: Chain) -> None:
    assert [death["code"] for death in chain.deaths] == [-9] * KILLS, chain.deaths
    places = {death["where"] for death in chain.deaths}
    assert len(places) >= KILLS // 2, places
    steps = [death["step"] for death in chain.deaths]
    assert steps == sorted(steps)
    assert len(set(steps)) >= KILLS // 2, "the kills are not spread over the run"


@pytest.mark.slow
def test_the_weights_are_bit_identical(chain: Chain) -> None:
    whole, killed = ((chain.folder / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.slow
def test_log_and_metrics_are_the_same_but_for_the_time_it_took(chain: Chain) -> None:
    def read(name: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
        with open(chain.folder / name / "log.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            del row["seconds"], row["images_per_second"]
        metrics = json.loads((chain.folder / name / "metrics.json").read_text())
        del metrics["train_seconds"]
        return rows, metrics

    assert read("whole") == read("killed")
    assert len(read("killed")[0]) == 6


@pytest.mark.slow
def test_no_litter_is_left(chain: Chain) -> None:
    kept = sorted(path.name for path in (chain.folder / "killed").rglob("*") if path.is_file())
    assert [name for name in kept if "tmp" in name] == []
    assert len([name for name in kept if name.startswith("step-")]) <= 2
