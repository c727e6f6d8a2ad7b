"""Trains what the tables need, side by side on the visible GPUs: python -m results.train cifar100:1 cifar10_t1

A run is RECIPE or RECIPE:SEED; --missing names those of goals.csv that results/ does not hold. A teacher under runs/
that is not there is trained first. Each run is measured on its own device, made ready to ship where it may (RUN/ship/,
in 8 bits), and taken into results/, as `results.measure`, `results.ship` and `results.add` do. What is finished is
left alone, what was interrupted goes on.
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
from results.queue import Command, Job, Queue
from s2tdpt.errors import RecipeError, S2tdptError
from s2tdpt.training.folder import MODEL, RECIPE
from s2tdpt.training.recipe import Recipe, list_recipes, load_recipe, parse_overrides

SHIP = "ship"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RECIPE[:SEED]", help="recipes that come with the package")
    parser.add_argument("--missing", action="store_true", help="all that goals.csv names and results/ does not hold")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="GPUs of each run, which share its batch")
    parser.add_argument("--variant", help="name of the runs, where --set makes them depart from their recipes")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="of runs and logs")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER")
    queue.options(parser)
    asked = parser.parse_args(argv)
    devices = asked.devices or queue.visible_devices()
    try:
        if asked.processes > len(devices):
            raise S2tdptError(f"--processes {asked.processes}: there are {len(devices)} devices ({', '.join(devices)})")
        jobs = list(plan(asked))
    except S2tdptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not jobs:
        print("nothing to train: name a RECIPE, or --missing")
    take = {job.folder: words for job, words in jobs}
    return Queue(
        [job for job, _ in jobs],
        devices,
        lambda job: add.main(take[job.folder]) == 0,
        minutes=asked.minutes,
        commit=asked.commit,
    ).run()


def plan(asked: argparse.Namespace) -> Iterator[tuple[Job, list[str]]]:
    """Every run that was asked for, its teacher before it, with the arguments of `results.add` that take it in."""
    wanted = [*map(_parse, asked.names), *(missing(asked.results) if asked.missing else [])]
    planned: set[Path] = set()
    for name, seed in dict.fromkeys(wanted):
        recipe = load_recipe(name).replace(**parse_overrides(asked.set), seed=seed)
        needs = _teacher(recipe)
        if needs is not None and needs not in planned:
            planned.add(needs)
            yield _job(load_recipe(needs.name), needs, None, asked, changes=[])
        folder = asked.runs / _folder_name(recipe, asked.variant)
        if folder not in planned:
            planned.add(folder)
            yield _job(recipe, folder, needs, asked, changes=asked.set)


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


def _teacher(recipe: Recipe) -> Path | None:
    """The folder of a teacher that is not trained yet; None where there is none to wait for."""
    if recipe.distill is None or not recipe.distill.teacher.startswith("runs/"):
        return None
    folder = Path(recipe.distill.teacher)
    if (folder / f"{MODEL}.json").exists():
        return None
    if folder.name not in list_recipes():
        raise RecipeError(f"{recipe.name}: its teacher {folder} is not there, and no recipe is called {folder.name}")
    return folder


def _folder_name(recipe: Recipe, variant: str | None) -> str:
    seed = f"seed{recipe.seed}" if recipe.seed or variant else ""
    return "-".join(filter(None, [recipe.name, variant, seed]))


def _job(
    recipe: Recipe, folder: Path, needs: Path | None, asked: argparse.Namespace, changes: Sequence[str]
) -> tuple[Job, list[str]]:
    changes, variant = list(changes), asked.variant
    launch: Command = (sys.executable, "-m")
    if asked.processes > 1:
        launch += ("torch.distributed.run", "--standalone", "--nproc-per-node", str(asked.processes), "-m")
        changes.append(f"data.batch_size={recipe.data.batch_size // asked.processes}")
        variant = "-".join(filter(None, [variant, f"{asked.processes}-gpus"]))
    words = ["s2tdpt", "train", recipe.name, "--seed", str(recipe.seed)]
    words += [word for change in changes for word in ("--set", change)]
    where = ["--data-root", asked.data_root] if asked.data_root else []
    resume = ["--resume"] if (folder / RECIPE).is_file() else []
    python = (sys.executable, "-m")
    name = f"{recipe.model.name}.{recipe.data.name}"
    measured, shipped = folder / rows.MEASURED, folder / SHIP / f"{name}.md"
    after: list[Command] = [(*python, "results.measure", str(folder), *where)]
    products = [measured]
    if not recipe.data.holdout:  # what has not seen all training images cannot ship
        after.append((*python, "results.ship", str(folder), "--name", name, "--out", str(folder / SHIP), *where))
        products.append(shipped)
    title = f"{recipe.name}, seed {recipe.seed}" + (f", {variant}" if variant else "")
    train = (*launch, *words, "--out", str(folder), *where, *resume)
    job = Job(title, folder, train, tuple(after), tuple(products), needs, asked.processes)
    add_words = [str(folder), "--results", str(asked.results)]
    add_words += ["--variant", variant] if variant else []
    add_words += ["--commit", asked.commit] if asked.commit else []
    if asked.processes > 1:
        told = ["torchrun", "--standalone", "--nproc-per-node", str(asked.processes), "-m", *words]
        add_words += ["--command", shlex.join(told)]
    return job, add_words


if __name__ == "__main__":
    sys.exit(main())
