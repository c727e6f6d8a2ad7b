"""The folder of a run: who may write into it, and where its results came from."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch

from s2tdpt import __version__
from s2tdpt.errors import CheckpointError, TrainingError
from s2tdpt.models import save_weights
from s2tdpt.training import checkpoint
from s2tdpt.training.recipe import Recipe, load_recipe
from s2tdpt.training.setup import Setup

RECIPE, LOG, METRICS, CHECKPOINT, BOARD, MODEL = (
    "recipe.yaml",
    "log.csv",
    "metrics.json",
    "checkpoint",
    "tensorboard",
    "model",
)
MAY_CHANGE = ("max_minutes", "eval_every", "checkpoint_every_minutes", "data.eval_batch_size")
"""What a resumed run may do otherwise: none of it enters the weights but `max_minutes`, which ends them."""


def open_run(out: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """Make `out` this recipe's folder; the metrics if the run in it is over. Raises what `refuse_taken` does."""
    refuse_taken(out, recipe, resume)
    if (out / METRICS).exists():
        try:
            return json.loads((out / METRICS).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{out / METRICS} cannot be read ({error}): remove it to evaluate again") from error
    write_file(out / RECIPE, recipe.to_yaml())
    return None


def refuse_taken(out: Path, recipe: Recipe, resume: bool) -> None:
    """`TrainingError` for a folder that holds a run already (without `resume`) or the run of another recipe."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file: choose another folder")
    begun = any((out / name).exists() for name in (CHECKPOINT, LOG, METRICS))
    if begun and not resume:
        raise TrainingError(f"{out} holds a run already: go on with --resume, or choose another folder")
    if begun and (out / RECIPE).exists():
        key = first_difference(load_recipe(out / RECIPE), recipe)
        if key is not None:
            raise TrainingError(f"{out} was started by a recipe with another {key}: resume with that, or start anew")


def write_file(path: Path, text: str) -> None:
    """Write a small file whole, or raise `CheckpointError` in one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomic(path, text.encode())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, then --resume" if full else "name another folder with --out"
        raise CheckpointError(f"cannot write {path} ({error.strerror or error}): {advice}") from error


def first_difference(before: Recipe, after: Recipe) -> str | None:
    """Dotted key of the first value in which two recipes differ, with both values; None if a run may go on."""
    old, new = dict(_flat(before.to_dict())), dict(_flat(after.to_dict()))
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in MAY_CHANGE and old.get(key) != new.get(key):
            return f"{key} ({old.get(key)!r}, not {new.get(key)!r})"
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def write_results(out: Path, setup: Setup, state: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Write the weights that the run hands out (their average where there is one) and, last of all, metrics.json."""
    metrics = summarise(setup, state, results)
    data = setup.eval_set
    card = {
        "model": setup.recipe.model.name,
        "weights": metrics["weights"],
        "data": {
            "name": data.name,
            "mean": list(data.mean),
            "std": list(data.std),
            "classes": list(data.classes),
            "image_size": list(data.image_size),
        },
        "metrics": metrics,
        "recipe": setup.recipe.to_dict(),
    }
    with setup.ema.swap() if setup.ema is not None else nullcontext():
        setup.ranks.on_main(lambda: save_weights(setup.model, out / MODEL, meta=card))
    setup.ranks.on_main(lambda: write_file(out / METRICS, json.dumps(metrics, indent=1) + "\n"))
    return metrics


def summarise(setup: Setup, state: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a finished run. "top1", "top5", "loss" and the rates are those of the weights handed out.

    "best_epoch_top1" is what choosing the epoch by the evaluation images would have shown: never the result.
    """
    weights = "ema" if setup.ema is not None else "last"
    key = "ema_top1" if setup.ema is not None else f"{setup.evaluated_on}_top1"
    rows = [row for row in state["history"] if row[key] is not None]
    best = max(rows, key=lambda row: row[key])
    return {
        "recipe": setup.recipe.name,
        "model": setup.recipe.model.name,
        "attention": setup.recipe.model.attention,
        "data": setup.recipe.data.name,
        "evaluated_on": setup.evaluated_on,
        "weights": weights,
        "time_steps": state["time_steps"],
        **results[weights],
        "last_epoch_top1": results["last"]["top1"],
        "ema_top1": results["ema"]["top1"] if "ema" in results else None,
        "best_epoch_top1": best[key],
        "best_epoch": best["epoch"],
        **results["rates"],
        "parameters": sum(parameter.numel() for parameter in setup.model.parameters()),
        "epochs": len(state["history"]),
        "steps": state["step"],
        "train_seconds": state["elapsed"],
        "inexact_at": state["inexact_at"],
        **({} if setup.initial is None else {"initial_weights": setup.initial}),
        **({} if setup.distillation is None else {"distill": setup.distillation.source}),
        **provenance(setup.ranks.device, setup.ranks.world_size),
    }


def provenance(device: torch.device, world_size: int) -> dict[str, Any]:
    """Hardware, versions, and the commit: S2TDPT_COMMIT where that is set, else the checkout's."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    hardware: dict[str, Any] = {"device": name, "count": world_size, "cpu_threads": torch.get_num_threads()}
    if on_gpu:
        hardware["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    versions = {
        "s2tdpt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    return {"hardware": hardware, "versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """S2TDPT_COMMIT, or the commit of the checkout that this file is tracked in ("-dirty" if changed), or None."""
    if told := os.environ.get("S2TDPT_COMMIT"):
        return told

    def git(*arguments: str) -> str:
        here = os.path.dirname(os.path.abspath(__file__))
        command = ["git", "-C", here, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", os.path.basename(__file__))
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
