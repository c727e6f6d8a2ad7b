"""Measures weights in float32, firing rates and energy included: python -m results.measure RUN [--device cuda]

RUN is the folder of a finished run, or a .safetensors file with its .json. The figures are those of the full test set,
or of the held-out training images of a run that held some out. On a GPU it takes seconds, on two CPU cores a quarter of
an hour; `results.add --measured` and `results.ship --measured` take the file it writes to another machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from results.rows import MEASURED
from s2tdpt import energy
from s2tdpt.cli import subject
from s2tdpt.data import DeviceLoader, ImageSet
from s2tdpt.errors import DataError, S2tdptError
from s2tdpt.training.checkpoint import write_atomic
from s2tdpt.training.folder import provenance
from s2tdpt.training.numerics import exact

ENERGY_IMAGES = 500
ENERGY_TABLE = "paper"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default: RUN/{MEASURED}")
    parser.add_argument("--also-at", type=int, nargs="*", default=[], metavar="T", help="accuracy at these T too")
    options(parser)
    asked = parser.parse_args(argv)
    try:
        out = asked.out or Path(asked.model) / MEASURED
        if not asked.out and not Path(asked.model).is_dir():
            raise DataError(f"{asked.model} is no folder: say with --out where the figures go")
        figures = measure(asked.model, asked, asked.also_at)
        write_atomic(out, (json.dumps(figures, indent=1) + "\n").encode())
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"top-1 {figures['top1']:.2%}, {figures['energy_mj']:.3f} mJ: wrote {out}")
    return 0


def options(parser: argparse.ArgumentParser) -> None:
    """What every command that measures takes."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, …; default: a GPU if there is one")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="default: $S2TDPT_DATA, else the user's cache")
    parser.add_argument("--batch-size", type=int, default=250, metavar="N")
    parser.add_argument("--energy-images", type=int, default=ENERGY_IMAGES, metavar="N", help="default: %(default)s")


def measure(model: str, asked: argparse.Namespace, also_at: Sequence[int] = ()) -> dict[str, Any]:
    """All figures of a model's weights; `asked` holds `options`.

    Keys: sha256 of the tensor file, data, evaluated_on, n, precision, time_steps, top1, top5, loss, top1_at (by T),
    confusion [K][K] (true class, then answer), energy_mj, energy_table, energy_images, synaptic_firing_rate,
    mean_firing_rate, attention_firing_rate, firing_rates (by name of the neurons), hardware, versions.
    """
    net, card = subject.load(model, asked.device, None)
    if hasattr(net, "implementation"):
        net.implementation = "plain"  # the reference, on any device
    images, evaluated_on = _images(net, card, asked.data_root)
    device = subject.device_of(net)
    with exact():
        logits = answers(net, images, asked.batch_size)
        figures = scores(logits, images.labels)
        trained_at, others = net.time_steps, {}
        for net.time_steps in also_at:
            others[str(net.time_steps)] = scores(answers(net, images, asked.batch_size), images.labels)["top1"]
        net.time_steps = trained_at
        spikes = spiking(net, images.limit(asked.energy_images), min(asked.batch_size, 100))
    told = provenance(device, 1)
    return {
        "sha256": card["sha256"],
        "data": images.name,
        "evaluated_on": evaluated_on,
        "precision": "float32",
        "time_steps": trained_at,
        **figures,
        **({"top1_at": others} if others else {}),
        **spikes,
        "confusion": confusion(logits, images.labels),
        "hardware": told["hardware"],
        "versions": told["versions"],
    }


@torch.no_grad()
def answers(net: Any, images: ImageSet, batch_size: int) -> Tensor:
    """Logits [N, K] of all images, on the CPU."""
    loader = DeviceLoader(images, min(batch_size, len(images)), device=subject.device_of(net), shuffle=False)
    batches = tqdm(
        loader.epoch(0), total=loader.steps_per_epoch, desc=f"T = {net.time_steps}", disable=None, leave=False
    )
    return torch.cat([net(x).float().cpu() for x, _ in batches])


def scores(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracies as fractions, mean cross-entropy, and the number of images."""
    labels = labels.cpu()
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {
        "n": len(labels),
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits.any(1).double().mean().item(),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """How often each class (rows) was given each answer (columns)."""
    classes = logits.shape[1]
    counts = torch.bincount(labels.cpu() * classes + logits.argmax(1), minlength=classes**2)
    return counts.view(classes, classes).tolist()


def spiking(net: Any, images: ImageSet, batch_size: int) -> dict[str, Any]:
    """Energy and firing rates, means over the images."""
    loader = DeviceLoader(images, min(batch_size, len(images)), device=subject.device_of(net), shuffle=False)
    energies, weights, by_macs, by_neurons = [], [], [], []
    rates: dict[str, list[float]] = {}
    for x, _ in loader.epoch(0):
        report = energy.count(net, x)
        weights.append(len(x))
        energies.append(report.energy_mj(ENERGY_TABLE))
        by_macs.append(report.mean_firing_rate)
        by_neurons.append(report.neuron_firing_rate)
        for neuron in report.neurons:
            if neuron.firing_rate is not None:
                rates.setdefault(neuron.name, []).append(neuron.firing_rate)

    def mean(values: list[float]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)

    firing = {name: mean(values) for name, values in rates.items()}
    return {
        "energy_mj": mean(energies),
        "energy_table": ENERGY_TABLE,
        "energy_images": len(images),
        "synaptic_firing_rate": mean(by_macs) if firing else None,
        "mean_firing_rate": mean(by_neurons) if firing else None,
        "attention_firing_rate": [firing[name] for name, _ in net.named_modules() if name.endswith(".attn.mix_neuron")],
        "firing_rates": firing,
    }


def _images(net: Any, card: dict[str, Any], root: Path | None) -> tuple[ImageSet, str]:
    """The images that the run itself was evaluated on, and what they are."""
    held_out = card.get("recipe", {}).get("data", {}).get("holdout", 0)
    if not held_out:
        return subject.load_images(net, card, None, "test", root, None), "test"
    return subject.load_images(net, card, None, "train", root, None).holdout(held_out)[1], "holdout"


if __name__ == "__main__":
    sys.exit(main())
