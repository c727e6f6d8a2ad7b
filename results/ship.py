"""Makes weights ready to ship: python -m results.ship RUN --name s2tdpt_4_384.cifar10 [--device cuda]

RUN is the folder of a finished run, or a .safetensors file with its .json. Writes NAME.safetensors (large matrices in 8
bits with a scale for each output channel, BatchNorm and vectors in float32), NAME.json and the model card NAME.md into
weights/, once the file itself has been measured on the full test set in float32 and every attention neuron was found
alive. `--measured FILE` takes figures that `python -m results.measure NAME.safetensors` found on another machine.
`python -m results.tables` keeps the cards' sentences about other seeds up to date.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results import card, rows
from results.add import portable, rename_sources
from results.goals import FIRING_BAND, outside_band
from results.measure import measure, options
from s2tdpt.errors import DataError, ModelError, S2tdptError
from s2tdpt.models import load_model, save_weights
from s2tdpt.models.registry import MODELS
from s2tdpt.models.weights import STORED_DTYPES, read_card
from s2tdpt.training.distributed import pick_device
from s2tdpt.training.folder import METRICS
from s2tdpt.training.recipe import Recipe

LARGEST = 10_000_000
"""Bytes of a weights file that ships."""
OF_THE_FILE = ("n", "precision", "time_steps", "top1", "top5", "loss", "energy_mj", "energy_table", "energy_images",
               "synaptic_firing_rate", "mean_firing_rate", "attention_firing_rate", "firing_rates")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--name", required=True, metavar="MODEL.TAG")
    parser.add_argument("--dtype", choices=STORED_DTYPES, default="int8", help="default: %(default)s")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="figures of these very weights; default: measure")
    parser.add_argument("--commit", help="that trained it, where the run does not say (default: $S2TDPT_COMMIT)")
    parser.add_argument("--command", help="that trained it, where the run does not say")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=rows.RESULTS.parent / "weights", metavar="FOLDER")
    options(parser)
    asked = parser.parse_args(argv)
    try:
        path = ship(asked)
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    figures = read_card(path)["metrics"]
    print(f"top-1 {figures['top1']:.2%} (float32, {figures['n']:,} images): wrote {path}.safetensors, .json and .md")
    return 0


def ship(asked: argparse.Namespace) -> Path:
    """The files' path without suffix; nothing is written unless everything about them is right."""
    if asked.name.partition(".")[0] not in MODELS or not asked.name.partition(".")[2]:
        raise ModelError(f"{asked.name!r} is no name for weights: MODEL.TAG, MODEL one of {', '.join(MODELS)}")
    net, known = load_model(asked.run, device=str(pick_device(asked.device)))
    meta = _origin(known, asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.out, prefix=".new-") as folder:
        draft = Path(folder) / asked.name
        save_weights(net, draft, meta=meta, dtype=asked.dtype)
        tensors = draft.with_name(f"{asked.name}.safetensors")
        size = tensors.stat().st_size
        if size > LARGEST:
            raise ModelError(f"{asked.name}.safetensors would have {size:,} bytes, at most {LARGEST:,}: --dtype int8")
        figures = rows.read_json(asked.measured) if asked.measured else measure(str(tensors), asked)
        _refuse_unfit(figures, read_card(draft), asked)
        meta["metrics"] = {key: figures[key] for key in OF_THE_FILE} | {"evaluated_on": "test"}
        meta["confusion"] = [" ".join(map(str, line)) for line in figures["confusion"]]
        save_weights(net, draft, meta=meta, dtype=asked.dtype)
        text = card.text(asked.name, read_card(draft), size, rows.read(asked.results / rows.ACCURACY))
        draft.with_name(f"{asked.name}.md").write_text(text, encoding="utf-8")
        for suffix in (".safetensors", ".json", ".md"):
            os.replace(draft.with_name(asked.name + suffix), asked.out / (asked.name + suffix))
    return asked.out / asked.name


def _origin(known: Mapping[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """What the card says of the training: model, data, recipe, the run's own metrics, command and commit."""
    run: dict[str, Any] = dict(known.get("run") or known.get("metrics") or {})  # "run": weights that ship already
    recipe = known.get("recipe")
    if not run or not recipe:
        raise ModelError(f"{asked.run}: its card does not say how it was trained (no metrics or no recipe)")
    told = rows.read_json(Path(asked.run) / rows.PROVENANCE)
    for kept in asked.results.glob(f"{recipe['name']}/*/{METRICS}"):  # the same run, taken in before
        if rows.read_json(kept).get("train_seconds") == run["train_seconds"]:
            told |= rows.read_json(kept.parent / rows.PROVENANCE)
    commit = asked.commit or run.get("commit") or told.get("commit") or os.environ.get("S2TDPT_COMMIT")
    if not commit:
        raise DataError(f"{asked.run} does not say which commit trained it: name it with --commit")
    plan = portable(Recipe.from_dict(recipe))
    rename_sources(run, plan)
    command = asked.command or told.get("command") or known.get("command")
    return {
        "model": asked.name.partition(".")[0],
        "weights": known["weights"],
        "data": known["data"],
        "metrics": {},
        "run": run | {"commit": commit},
        "command": command or f"s2tdpt train {recipe['name']} --seed {recipe['seed']}",
        "recipe": plan.to_dict(),
    }


def _refuse_unfit(figures: Mapping[str, Any], new: Mapping[str, Any], asked: argparse.Namespace) -> None:
    """Figures of other weights or other images, and weights whose attention is silent or saturated."""
    if figures.get("sha256") != new["sha256"]:
        raise DataError(f"{asked.measured} was measured on other weights: measure {asked.name}.safetensors itself")
    if figures["evaluated_on"] != "test":
        raise ModelError(f"{asked.run} was trained without some training images, to choose by them: it cannot ship")
    bad = outside_band(figures["attention_firing_rate"])
    if bad:
        low, high = (f"{100 * edge:g}" for edge in FIRING_BAND)
        rates = ", ".join(f"{rate:.2%}" for rate in figures["attention_firing_rate"])
        raise ModelError(f"{asked.run} cannot ship: its attention neurons fire {rates}, not {low} to {high} % each")


if __name__ == "__main__":
    sys.exit(main())
