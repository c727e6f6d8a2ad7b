"""Where a teacher and initial weights are: those that ship, those that a recipe makes, and those on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s2tdpt.data import load
from s2tdpt.errors import RecipeError
from s2tdpt.models import create_model, list_models, save_weights
from s2tdpt.training import needs, sources
from s2tdpt.training.checkpoint import LATEST
from s2tdpt.training.distill import load_distillation
from s2tdpt.training.folder import CHECKPOINT
from s2tdpt.training.initial import start_from
from s2tdpt.training.needs import departures, in_order, needed
from s2tdpt.training.recipe import DistillRecipe, load_recipe, recipe_folders
from s2tdpt.training.sources import how_to_make, is_named, located

RUN, VIT = Path("runs/mine"), Path("runs/digits_vit")
BY_NAME = {"initial_weights": "vit_tiny.digits", "distill.teacher": "vit_tiny.digits"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_is_a_name() -> None:
    assert is_named("vit_tiny.digits")
    for other in (
        "vit_tiny",
        "vit_tiny.",
        "vit_tiny.digits.safetensors",
        "vit_tiny.digits/run",
        "runs/vit_tiny.digits",
    ):
        assert not is_named(other)


def test_weights_that_ship_and_paths_are_where_they_say() -> None:
    assert "s2tdpt_tiny.digits" in list_models(pretrained=True)
    for source in ("s2tdpt_tiny.digits", "runs/digits", "/elsewhere/model.safetensors", "nothing"):
        assert located(source) == source


def test_weights_that_do_not_ship_are_in_the_run_that_makes_them() -> None:
    Path("digits_vit").touch()  # no recipe, whatever its name
    assert located("vit_tiny.digits") == str(VIT)
    assert how_to_make(str(VIT)) == " (s2tdpt train digits_vit makes it)"
    assert how_to_make("vit_tiny.digits") == ""


def test_of_no_recipe_or_two_none_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "recipes"
    own.mkdir()
    load_recipe("digits_vit").replace(name="other").save(own / "twin.yaml")
    monkeypatch.setattr(sources, "recipe_folders", lambda: [own])
    assert located("vit_tiny.digits") == "runs/twin"
    monkeypatch.setattr(sources, "recipe_folders", lambda: [own, *recipe_folders()])
    with pytest.raises(RecipeError, match="2 recipes train it: name the run, runs/twin or runs/digits_vit"):
        located("vit_tiny.digits")
    with pytest.raises(RecipeError, match=r"vit_tiny\.cifar10 does not ship, and no recipe trains it"):
        needed(load_recipe("digits").replace(initial_weights="vit_tiny.cifar10"), RUN)


def test_a_recipe_needs_the_run_behind_a_name() -> None:
    recipe = load_recipe("digits").replace(**BY_NAME)
    assert needed(recipe, RUN) == (VIT,)
    with pytest.raises(RecipeError, match=r"initial_weights: runs/digits_vit is no folder.*s2tdpt train digits_vit"):
        start_from(create_model("s2tdpt_tiny"), "vit_tiny.digits")
    VIT.mkdir(parents=True)
    options = {"num_classes": 10, "in_channels": 1}
    save_weights(create_model("vit_tiny", **options), VIT / "model", meta={"model": "vit_tiny"})
    assert needed(recipe, RUN) == ()
    data = load("digits", "train", progress=False)
    teacher = load_distillation(DistillRecipe("vit_tiny.digits"), data, torch.device("cpu"))
    taken = start_from(create_model("s2tdpt_tiny", **options), "vit_tiny.digits")
    assert teacher.source["teacher"] == taken["source"] == "vit_tiny.digits"


def test_a_run_of_several_processes_is_one_of_its_recipe() -> None:
    recipe, today = load_recipe("digits").replace(**BY_NAME), load_recipe("digits_vit")
    VIT.mkdir(parents=True)
    half = {"data.batch_size": today.data.batch_size // 2, "seed": 3}
    today.replace(**half).save(VIT / "recipe.yaml")
    said = f"another data.batch_size ({today.data.batch_size // 2}, not {today.data.batch_size})"
    assert said in next(departures(recipe, RUN))
    (VIT / "metrics.json").write_text(json.dumps({"hardware": {"count": 2}}))
    assert list(departures(recipe, RUN)) == []


def test_a_run_that_has_a_checkpoint_needs_its_own_teacher() -> None:
    recipe = load_recipe("digits").replace(**BY_NAME)
    (RUN / CHECKPOINT).mkdir(parents=True)
    (RUN / CHECKPOINT / LATEST).touch()
    with pytest.raises(RecipeError, match=r"runs/mine was begun with the teacher in runs/digits_vit, which is gone"):
        needed(recipe, RUN)
    assert needed(recipe.replace(distill=None), RUN) == ()
    (RUN / "metrics.json").touch()
    assert needed(recipe, RUN) == ()  # it is over


def test_a_run_cannot_need_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "load_recipe", lambda name: load_recipe(name).replace(**BY_NAME))
    with pytest.raises(RecipeError, match="runs/digits_vit needs itself"):
        in_order([VIT])
