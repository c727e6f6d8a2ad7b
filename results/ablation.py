"""Runs the ablation: python -m results.ablation [ITEM …] --seeds 0 1

An item is recipes/two_minutes.yaml but for one change. Runs are done in a queue, one process a GPU, each with its own
log; what is finished is left alone, what was interrupted goes on. Each finished run is taken into results/ and
ablation.csv, as `python -m results.add RUN --ablation ITEM` does. "distill" learns from the "vit" of the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from results import add, queue
from results.queue import Job, Queue
from s2tdpt.errors import S2tdptError
from s2tdpt.training.folder import RECIPE
from s2tdpt.training.recipe import Recipe, load_recipe, parse_overrides
from s2tdpt.training.schedule import parse_plan


def items(base: Recipe, teacher: Path) -> dict[str, dict[str, Any]]:
    """What each item changes in `base`, by dotted key. Plans with one number of steps take about as much time."""
    *_, last = phases = parse_plan(base.schedule.time_steps)
    cost = sum(phase.cost for phase in phases)
    twin = base.model.name.replace("s2tdpt", "vit")
    return {
        "baseline": {},
        "no-plan": {"schedule.time_steps": f"{last.time_steps}:{round(cost / last.epoch_cost)}"},
        "adamw": {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.05},
        "no-mix": {"augment.mixup": 0.0, "augment.cutmix": 0.0, "augment.mix_probability": 0.0},
        "randaugment": {"augment.randaugment": {"operations": "geometric5"}},
        "ema": {"ema_decay": 0.998},
        "norms": {"norm_batches": 50},
        "ema-norms": {"ema_decay": 0.998, "norm_batches": 50},
        "plif": {"model.options.neuron": "plif"},
        "pool-gradient": {"model.options.pool_gradient": "largest"},
        "no-jump": {"model.options.window": {"jump": False}},
        "mean-attention": {"model.attention": "mean"},
        "vit": {"model.name": twin, "model.options.qk_norm": True, "schedule.time_steps": f"1:{round(cost)}"},
        "distill": {"distill.teacher": str(teacher)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", metavar="ITEM", help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--recipe", default="two_minutes", help="that the items change")
    try:
        asked = queue.parse(parser, argv, "runs/ablation")
        jobs = list(plan(asked))
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def take(job: Job) -> bool:
        item = job.folder.name.rpartition("-seed")[0]
        words = [str(job.folder), "--ablation", item, "--results", str(asked.results)]
        return add.main(words + (["--commit", asked.commit] if asked.commit else [])) == 0

    return Queue(jobs, asked.devices, take, minutes=asked.minutes, commit=asked.commit).run()


def plan(asked: argparse.Namespace) -> Iterator[Job]:
    """All runs that were asked for, in order, those that are needed first; every recipe is checked before any runs."""
    base = load_recipe(asked.recipe).replace(**parse_overrides(asked.set))
    known = list(items(base, Path()))
    unknown = [item for item in asked.items if item not in known]
    if unknown:
        raise S2tdptError(f"there is no item {unknown[0]!r}: {', '.join(known)}")
    chosen = asked.items or known
    if "distill" in chosen and "vit" not in chosen:
        chosen = ["vit", *chosen]
    for seed in asked.seeds:
        teacher = asked.runs / f"vit-seed{seed}"
        for item in sorted(chosen, key=known.index):
            changes = items(base, teacher)[item]
            base.replace(**changes)
            folder = asked.runs / f"{item}-seed{seed}"
            command = [sys.executable, "-m", "s2tdpt", "train", asked.recipe, "--out", str(folder)]
            command += ["--resume"] if (folder / RECIPE).is_file() else []
            command += ["--seed", str(seed), *(word for change in asked.set for word in ("--set", change))]
            for key, value in changes.items():
                command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
            if asked.data_root:
                command += ["--data-root", asked.data_root]
            needs = (teacher,) if item == "distill" else ()
            yield Job(f"{item}, seed {seed}", folder, tuple(command), needs=needs)


if __name__ == "__main__":
    sys.exit(main())
