"""What a recipe needs before it can be trained: a teacher, or initial weights, that a recipe of its own makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from s2tdpt.errors import RecipeError
from s2tdpt.training.folder import MODEL, RECIPE, first_difference
from s2tdpt.training.recipe import RUNS, Recipe, load_recipe
from s2tdpt.training.sources import folder_of, is_run_of_recipe, located


def needed(recipe: Recipe, begun: bool = False) -> tuple[Path, ...]:
    """The folders under runs/ of a teacher and of initial weights that are not trained yet.

    `begun`: the run goes on from a checkpoint, and needs no initial weights. `RecipeError` if no recipe makes them.
    """
    missing: dict[Path, None] = {}
    for source in _under_runs(recipe, begun):
        path, folder = Path(source), folder_of(source)
        if (path / f"{MODEL}.json" if path == folder else path).exists():
            continue
        if not (is_run_of_recipe(folder) and path in (folder, folder / f"{MODEL}.safetensors")):
            raise RecipeError(f"{recipe.name} needs {source}: it is not there, and no recipe makes it")
        missing[folder] = None
    return tuple(missing)


def in_order(needs: Sequence[Path]) -> list[tuple[Path, tuple[Path, ...]]]:
    """The runs in these folders and those that they need in turn, first what others wait for, each with its needs."""
    found: dict[Path, tuple[Path, ...]] = {}
    for folder in needs:
        theirs = needed(load_recipe(folder.name))
        found = {**found, **dict(in_order(theirs)), folder: theirs}
    return list(found.items())


def departures(recipe: Recipe, begun: bool = False) -> Iterator[str]:
    """In what a run that is there, and that `recipe` takes from, was not trained as its recipe says today."""
    for folder in dict.fromkeys(map(folder_of, _under_runs(recipe, begun))):
        if is_run_of_recipe(folder) and (folder / RECIPE).is_file():
            theirs = load_recipe(folder / RECIPE)
            difference = first_difference(load_recipe(folder.name).replace(seed=theirs.seed), theirs)
            if difference is not None:
                yield f"{folder} is no run of today's recipe {folder.name}, but of one with another {difference}"


def _under_runs(recipe: Recipe, begun: bool) -> list[str]:
    named = (None if begun else recipe.initial_weights, recipe.distill and recipe.distill.teacher)
    sources = (located(source) for source in named if source)
    return [source for source in sources if Path(source).parts[:1] == (RUNS,)]
