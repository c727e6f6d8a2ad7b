"""Where the weights are that a recipe names, as its teacher or to begin with."""

from __future__ import annotations

from pathlib import Path

from s2tdpt.models import list_models
from s2tdpt.models.registry import MODELS
from s2tdpt.training.recipe import RUNS, list_recipes, load_recipe


def is_named(source: str) -> bool:
    """Whether `source` is MODEL.DATA, and no folder or file."""
    return source.partition(".")[0] in MODELS


def located(source: str) -> str:
    """For MODEL.DATA that does not ship, the run of the only recipe that trains MODEL on DATA; else `source` itself."""
    if not is_named(source) or source in list_models(pretrained=True):
        return source
    model, _, data = source.partition(".")
    recipes = map(load_recipe, list_recipes())
    makers = [recipe.name for recipe in recipes if (recipe.model.name, recipe.data.name) == (model, data)]
    return str(Path(RUNS, makers[0])) if len(makers) == 1 else source


def folder_of(source: str) -> Path:
    """The folder that weights are in: `source` itself, or that of a .safetensors file."""
    path = Path(source)
    return path.parent if path.suffix == ".safetensors" else path


def is_run_of_recipe(folder: Path) -> bool:
    """Whether `folder` is where `s2tdpt train` puts the run of a recipe that comes with the package."""
    return folder.parent == Path(RUNS) and folder.name in list_recipes()


def how_to_make(source: str) -> str:
    """What to add to an error about weights that are not there: the command that trains them, if it is a known one."""
    folder = Path(located(source))
    known = is_run_of_recipe(folder) and not folder.exists()
    return f" (s2tdpt train {folder.name} makes it)" if known else ""
