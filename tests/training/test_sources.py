"""Where a teacher and initial weights are: those that ship, those that a recipe makes, and those on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from s2tdpt.data import load
from s2tdpt.errors import RecipeError
from s2tdpt.models import create_model, list_models, save_weights
from s2tdpt.training import sources
from s2tdpt.training.distill import load_distillation
from s2tdpt.training.initial import start_from
from s2tdpt.training.needs import departures, needed
from s2tdpt.training.recipe import DistillRecipe, load_recipe
from s2tdpt.training.sources import how_to_make, located

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_weights_that_ship_and_paths_are_where_they_say() -> None:
    assert "s2tdpt_tiny.digits" in list_models(pretrained=True)
    for source in ("s2tdpt_tiny.digits", "runs/digits", "/elsewhere/model.safetensors", "vit_tiny.flowers", "nothing"):
        assert located(source) == source


def test_weights_that_do_not_ship_are_in_the_run_that_makes_them() -> None:
    assert located("vit_tiny.digits") == "runs/digits_vit"
    assert how_to_make("vit_tiny.digits") == " (s2tdpt train digits_vit makes it)"


def test_of_two_recipes_for_the_same_neither_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {"one": load_recipe("digits_vit"), "two": load_recipe("digits_vit").replace(name="two")}
    monkeypatch.setattr(sources, "list_recipes", lambda: list(recipes))
    monkeypatch.setattr(sources, "load_recipe", recipes.__getitem__)
    assert located("vit_tiny.digits") == "vit_tiny.digits"
    del recipes["two"]
    assert located("vit_tiny.digits") == "runs/digits_vit"


def test_a_recipe_needs_the_run_behind_a_name() -> None:
    recipe = load_recipe("digits").replace(initial_weights="vit_tiny.digits")
    run = Path("runs/digits_vit")
    assert needed(recipe) == (run,)
    with pytest.raises(RecipeError, match=r"initial_weights: runs/digits_vit is no folder.*s2tdpt train digits_vit"):
        start_from(create_model("s2tdpt_tiny"), "vit_tiny.digits")
    run.mkdir(parents=True)
    load_recipe("digits_vit").replace(seed=3).save(run / "recipe.yaml")
    options = {"num_classes": 10, "in_channels": 1}
    save_weights(create_model("vit_tiny", **options), run / "model", meta={"model": "vit_tiny"})
    assert needed(recipe) == ()
    assert list(departures(recipe)) == []
    teacher = load_distillation(DistillRecipe("vit_tiny.digits"), load("digits", "train", progress=False), CPU)
    assert teacher.source["teacher"] == "vit_tiny.digits"
    taken = start_from(create_model("s2tdpt_tiny", **options), "vit_tiny.digits")
    assert taken["source"] == "vit_tiny.digits"
    load_recipe("digits_vit").replace(label_smoothing=0.3).save(run / "recipe.yaml")
    assert "label_smoothing" in next(departures(recipe))
