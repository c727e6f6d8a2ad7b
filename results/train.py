"""Trains what the tables need, side by side on the visible GPUs: python -m results.train cifar100:1 cifar10_t1

A run is RECIPE or RECIPE:SEED; --missing names those of goals.csv that results/ does not hold. A teacher or initial
weights that are not there, and that a recipe makes, are trained first. Each run is measured on its own device, made
ready to ship where it may (RUN/ship/, in 8 bits), and taken into results/, as `results.measure`, `results.ship` and
`results.add` do. What is finished is left alone, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from results import add, queue, rows
from results.goals import read_goals
from results.queue import Job, Queue
from s2tdpt.errors import RecipeError, S2tdptError
from s2tdpt.training.folder import RECIPE, first_difference
from s2tdpt.training.needs import in_order, needed
from s2tdpt.training.recipe import Recipe, load_recipe, parse_overrides

SHIP = "ship"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RECIPE[:SEED]", help="recipes that come with the package")
    parser.add_argument("--missing", action="store_true", help="all that goals.csv names and results/ does not hold")
    parser.add_argument("--list", action="store_true", help="only say what would be trained")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="GPUs of each run, which share its batch")
    parser.add_argument("--variant", help="name of the runs, where --set makes them depart from their recipes")
    try:
        asked = queue.parse(parser, argv, "runs")
        if asked.processes > len(asked.devices):
            here = ", ".join(asked.devices)
            raise S2tdptError(
                f"--processes {asked.processes} needs as many GPUs, here: {here}; leave it out, or lower it"
            )
        jobs = list(plan(asked))
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not jobs:
        print("error: nothing to train: name a RECIPE, or --missing", file=sys.stderr)
        return 2
    for job, _ in jobs:
        print(f"{job.name}: {'done' if job.finished else shlex.join(job.train)}")
    if asked.list:
        return 0
    take = {job.folder: words for job, words in jobs}
    return Queue(
        [job for job, _ in jobs],
        asked.devices,
        lambda job: _take(job, take[job.folder]),
        minutes=asked.minutes,
        commit=asked.commit,
    ).run()


def _take(job: Job, words: list[str]) -> bool:
    """Into results/, unless another run of the recipe is there and only a student asked for this one."""
    if not words:
        print(f"{job.name}: not taken into results/, which has another run of it; its students say which taught them")
    return not words or add.main(words) == 0


def plan(asked: argparse.Namespace) -> Iterator[tuple[Job, list[str]]]:
    """Every run that was asked for, what it needs before it, with the arguments of `results.add` that take it in.

    No arguments for a run that only others need, where results/ has one of that recipe already.
    """
    wanted = [*map(_parse, asked.names), *(missing(asked.results) if asked.missing else [])]
    changes = parse_overrides(asked.set)
    named = {name for name, seed in wanted if not seed and not asked.variant}
    planned: set[Path] = set()
    for name, seed in dict.fromkeys(wanted):
        shipped = load_recipe(name).replace(seed=seed)
        recipe = shipped.replace(**changes)
        difference = first_difference(shipped, recipe)
        if difference is not None and not asked.variant:
            raise RecipeError(f"{name}: --set changes {difference}: name such runs with --variant")
        folder = asked.runs / _folder_name(recipe, asked.variant, asked.processes)
        needs = needed(recipe, folder)
        for other, theirs in in_order(needs):
            if other not in planned:
                planned.add(other)
                job, words = _job(load_recipe(other.name), other, theirs, asked, changes=[], variant=None)
                spare = other.name not in named and any((asked.results / other.name).glob("*seed0"))
                yield job, [] if spare else words
        if folder not in planned:
            planned.add(folder)
            yield _job(recipe, folder, needs, asked, changes=asked.set, variant=asked.variant)


def missing(root: Path) -> Iterator[tuple[str, int]]:
    """Recipes and seeds of goals.csv that have no folder under `root`, in the order of the goals."""
    for goal in read_goals(root):
        for seed in range(goal.seeds):
            if goal.recipe and not (root / goal.recipe / f"seed{seed}").exists():
                yield goal.recipe, seed


def _parse(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\w+)(?::(\d+))?", text)
    if found is None:
        raise RecipeError(f"{text!r}: a run is RECIPE or RECIPE:SEED, as in cifar100:1")
    return found[1], int(found[2] or 0)


def _folder_name(recipe: Recipe, variant: str | None, processes: int) -> str:
    width = f"{processes}-gpus" if processes > 1 else ""
    seed = f"seed{recipe.seed}" if recipe.seed or variant or width else ""
    return "-".join(filter(None, [recipe.name, variant, width, seed]))


def _job(
    recipe: Recipe,
    folder: Path,
    needs: tuple[Path, ...],
    asked: argparse.Namespace,
    changes: Sequence[str],
    variant: str | None,
) -> tuple[Job, list[str]]:
    changes, launch = list(changes), [sys.executable, "-m"]
    if asked.processes > 1:
        share, rest = divmod(recipe.data.batch_size, asked.processes)
        if rest:
            raise RecipeError(
                f"--processes {asked.processes} cannot share the {recipe.data.batch_size} images of a batch"
            )
        launch += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(asked.processes), "-m"]
        changes.append(f"data.batch_size={share}")
        recipe = recipe.replace(**{"data.batch_size": share})
    if begun := (folder / RECIPE).is_file():
        difference = first_difference(load_recipe(folder / RECIPE), recipe)
        if difference is not None:
            raise RecipeError(
                f"{folder} holds a run with another {difference}: name this one with --variant, or --runs"
            )
    where = ["--data-root", asked.data_root] if asked.data_root else []
    train = [*launch, "s2tdpt", "train", recipe.name, "--out", str(folder), "--seed", str(recipe.seed)]
    train += [word for change in changes for word in ("--set", change)]
    python, name = [sys.executable, "-m"], f"{recipe.model.name}.{recipe.data.name}"
    after = [[*python, "results.measure", str(folder), *where]]
    products = [folder / rows.MEASURED]
    if not recipe.data.holdout:  # what has not seen all training images cannot ship
        after.append([*python, "results.ship", str(folder), "--name", name, "--out", str(folder / SHIP), *where])
        products.append(folder / SHIP / f"{name}.md")
    job = Job(
        ", ".join(filter(None, [recipe.name, f"seed {recipe.seed}", variant])),
        folder,
        (*train, *where, *(["--resume"] if begun else [])),
        tuple(map(tuple, after)),
        tuple(products),
        needs,
        asked.processes,
    )
    take = [str(folder), "--results", str(asked.results)]
    take += ["--variant", variant] if variant else []
    take += ["--commit", asked.commit] if asked.commit else []
    return job, take


if __name__ == "__main__":
    sys.exit(main())
