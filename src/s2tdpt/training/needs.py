"""What a recipe needs before it can be trained: a teacher, or initial weights, that a recipe of its own makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from s2tdpt.errors import RecipeError
from s2tdpt.training.folder import MODEL
from s2tdpt.training.recipe import Recipe, list_recipes, load_recipe

RUNS = "runs"


def needed(recipe: Recipe, begun: bool = False) -> tuple[Path, ...]:
    """The folders under runs/ of a teacher and of initial weights that are not trained yet.

    `begun`: the run goes on from a checkpoint, and needs no initial weights. `RecipeError` if no recipe makes them.
    """
    named = (None if begun else recipe.initial_weights, recipe.distill and recipe.distill.teacher)
    folders = dict.fromkeys(folder_of(source) for source in named if source)
    missing = [folder for folder in folders if folder.parts[:1] == (RUNS,) and not (folder / f"{MODEL}.json").exists()]
    for folder in missing:
        if folder.name not in list_recipes():
            raise RecipeError(f"{recipe.name} needs {folder}: it is not there, and no recipe is called {folder.name}")
    return tuple(missing)


def in_order(needs: Sequence[Path]) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """The runs in these folders and those that they need in turn, first what others wait for, each with its needs."""
    for folder in needs:
        theirs = needed(load_recipe(folder.name))
        yield from in_order(theirs)
        yield folder, theirs


def folder_of(source: str) -> Path:
    """The folder that weights are in: `source` itself, or that of a .safetensors file."""
    path = Path(source)
    return path.parent if path.suffix == ".safetensors" else path
