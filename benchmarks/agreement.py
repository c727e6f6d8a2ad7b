"""How far the fast modes answer as the model in float32 does, on test images: python -m benchmarks.agreement WEIGHTS

WEIGHTS: NAME.TAG, a run's folder or a .safetensors file. Without --data, what the weights were trained on.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS
from benchmarks.rows import commit, hardware, versions
from s2tdpt.data import DeviceLoader, load
from s2tdpt.errors import ModelError, S2tdptError
from s2tdpt.inference import agreement, compile_for_inference
from s2tdpt.models import load_model
from s2tdpt.training.distributed import pick_device
from s2tdpt.training.numerics import exact, numerics

Mode = Callable[[Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data", metavar="NAME")
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--device")
    parser.add_argument("--limit", type=int, metavar="N", help="of test images (default: all)")
    parser.add_argument("--batch-size", type=int, default=250, metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    asked = parser.parse_args(argv)
    try:
        device = pick_device(asked.device)
        with numerics(device, deterministic=False), exact():  # the truth is float32, not TF32
            compare(asked, device)
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(asked: argparse.Namespace, device: torch.device) -> None:
    """Print and keep a row for each fast mode that this machine has."""
    model, card = load_model(asked.weights, device=str(device))
    data = load(asked.data or card["data"]["name"], "test", root=asked.data_root, limit=asked.limit)
    truth = copy.deepcopy(model)
    truth.implementation = "plain"  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    words = [f"--{key} {value}" for key in ("data", "limit", "device") if (value := getattr(asked, key))]
    for name, mode in modes(model, device).items():
        batches = DeviceLoader(data, asked.batch_size, device=device).epoch(0)
        found = agreement(truth, mode, batches)
        keep(
            asked.results / "agreement.csv",
            {
                "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
                "commit": commit(),
                "hardware": hardware(device),
                "versions": versions(),
                "command": " ".join(["python -m benchmarks.agreement", asked.weights, *words]),
                "weights": asked.weights,
                "data": data.name,
                "mode": name,
                **found,
            },
        )


def modes(model: nn.Module, device: torch.device) -> dict[str, Mode]:
    """Fast ways to the logits of images, by name."""
    found: dict[str, Mode] = {}
    if device.type == "cuda":

        def autocast(x: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return model(x).float()

        found["fused, bfloat16"] = autocast
    for precision in ("float32", "int8"):
        try:
            found[f"compiled, {precision}"] = compile_for_inference(model, precision=precision)
        except ModelError as error:
            print(f"compiled, {precision}: {error}")
    return found


def keep(path: Path, row: dict[str, Any]) -> None:
    print(
        f"{row['weights']} on {row['n']} images, {row['mode']}: top-1 {100 * row['top1_compiled']:.2f} %, in float32 "
        f"{100 * row['top1']:.2f} %; {100 * row['changed_predictions']:.2f} % of predictions changed",
        flush=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
