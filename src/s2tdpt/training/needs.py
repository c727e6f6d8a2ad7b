"""What a recipe needs before it can be trained: a teacher, or initial weights, that a recipe of its own makes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from s2tdpt.errors import RecipeError
from s2tdpt.training.checkpoint import LATEST
from s2tdpt.training.folder import CHECKPOINT, METRICS, MODEL, RECIPE, first_difference
from s2tdpt.training.recipe import RUNS, Recipe, load_recipe
from s2tdpt.training.sources import folder_of, is_run_of_recipe, located


def needed(recipe: Recipe, run: Path) -> tuple[Path, ...]:
    """The folders under runs/ of a teacher and of initial weights that are not trained yet, for `recipe` in `run`.

    A run that is over needs nothing, one with a checkpoint no initial weights, and its very teacher. `RecipeError` if
    that is gone, or if no recipe makes what is needed.
    """
    missing: dict[Path, None] = {}
    for source in _under_runs(recipe, run):
        path, folder = Path(source), folder_of(source)
        if (path / f"{MODEL}.json" if path == folder else path).exists():
            continue
        if _begun(run):
            raise RecipeError(
                f"{run} was begun with the teacher in {source}, which is gone: put it back, or start anew"
            )
        if not (is_run_of_recipe(folder) and path in (folder, folder / f"{MODEL}.safetensors")):
            raise RecipeError(f"{recipe.name} needs {source}: it is not there, and no recipe makes it")
        missing[folder] = None
    return tuple(missing)


def in_order(needs: Sequence[Path], of: tuple[Path, ...] = ()) -> list[tuple[Path, tuple[Path, ...]]]:
    """The runs in these folders and those that they need in turn, first what others wait for, each with its needs.

    `of`: the runs that they are for, none of which they may need themselves.
    """
    found: dict[Path, tuple[Path, ...]] = {}
    for folder in needs:
        if folder in of:
            raise RecipeError(f"{folder} needs itself: name another teacher, or other initial weights, in its recipe")
        theirs = needed(load_recipe(folder.name), folder)
        found = {**found, **dict(in_order(theirs, (*of, folder))), folder: theirs}
    return list(found.items())


def departures(recipe: Recipe, run: Path) -> Iterator[str]:
    """In what a run that is there, and that `recipe` in `run` takes from, was not trained as its recipe says today."""
    for folder in dict.fromkeys(map(folder_of, _under_runs(recipe, run))):
        if is_run_of_recipe(folder) and (folder / RECIPE).is_file():
            today, theirs = load_recipe(folder.name), load_recipe(folder / RECIPE)
            whole = {"data.batch_size": theirs.data.batch_size * _processes(folder), "seed": today.seed}
            difference = first_difference(theirs.replace(**whole), today)
            if difference is not None:
                yield f"{folder} is no run of today's recipe {folder.name}, but of one with another {difference}"


def _processes(folder: Path) -> int:
    """Those that shared a batch in a finished run."""
    try:
        return json.loads((folder / METRICS).read_bytes())["hardware"]["count"]
    except (OSError, ValueError, LookupError):
        return 1


def _begun(run: Path) -> bool:
    return (run / CHECKPOINT / LATEST).exists()


def _under_runs(recipe: Recipe, run: Path) -> list[str]:
    if (run / METRICS).exists():
        return []
    named = (None if _begun(run) else recipe.initial_weights, recipe.distill and recipe.distill.teacher)
    sources = (located(source) for source in named if source)
    return [source for source in sources if Path(source).parts[:1] == (RUNS,)]
