"""Where the weights are that a recipe names, as its teacher or to begin with."""

from __future__ import annotations

from pathlib import Path

from s2tdpt.errors import RecipeError
from s2tdpt.models import list_models
from s2tdpt.models.registry import MODELS
from s2tdpt.training.recipe import RUNS, list_recipes, load_recipe, recipe_folders


def is_named(source: str) -> bool:
    """Whether `source` is MODEL.TAG, and no folder or file."""
    model, _, data = source.partition(".")
    return model in MODELS and data.replace("_", "").isalnum()


def located(source: str) -> str:
    """For MODEL.TAG that does not ship, the run of the only recipe for MODEL and the data TAG; else `source` itself.

    `RecipeError` where no recipe does, or several do.
    """
    if not is_named(source) or source in list_models(pretrained=True):
        return source
    files = {path.stem: path for folder in recipe_folders() for path in sorted(folder.glob("*.yaml"))}
    recipes = {name: load_recipe(path) for name, path in files.items()}
    makers = [name for name, recipe in recipes.items() if f"{recipe.model.name}.{recipe.data.name}" == source]
    if len(makers) == 1:
        return str(Path(RUNS, makers[0]))
    if not makers:
        raise RecipeError(f"{source} does not ship, and no recipe trains it: name a run's folder")
    runs = " or ".join(str(Path(RUNS, name)) for name in makers)
    raise RecipeError(f"{source} does not ship, and {len(makers)} recipes train it: name the run, {runs}")


def folder_of(source: str) -> Path:
    """The folder that weights are in: `source` itself, or that of a .safetensors file."""
    path = Path(source)
    return path.parent if path.suffix == ".safetensors" else path


def is_run_of_recipe(folder: Path) -> bool:
    """Whether `folder` is where `s2tdpt train` puts the run of a recipe that comes with the package."""
    return folder.parent == Path(RUNS) and folder.name in list_recipes()


def how_to_make(path: str) -> str:
    """What to add to an error about weights that are not at `path`: the command that trains them, if it is known."""
    folder = Path(path)
    known = is_run_of_recipe(folder) and not folder.exists()
    return f" (s2tdpt train {folder.name} makes it)" if known else ""
