"""Initial weights: what a model takes over from another, from its ANN twin, and from which it takes nothing."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from s2tdpt.data import ImageSet
from s2tdpt.errors import RecipeError
from s2tdpt.models import create_model, load_weights, save_weights
from s2tdpt.models.vit import VisionTransformer
from s2tdpt.training.distill import load_distillation
from s2tdpt.training.engine import train
from s2tdpt.training.initial import counterparts, start_from
from s2tdpt.training.recipe import DistillRecipe, Recipe

from .interrupting import stop_at


def made(name: str, seed: int, **options: Any) -> nn.Module:
    """A model of which every tensor is random, norms included."""
    torch.manual_seed(seed)
    model = create_model(name, **{"num_classes": 3, "depth": 1, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def saved(model: nn.Module, path: Path) -> str:
    save_weights(model, path, meta={"model": "a model"})
    return f"{path}.safetensors"


@pytest.fixture(params=["tiny", "h_384"])
def geometry(request: pytest.FixtureRequest) -> tuple[str, str]:
    return f"s2tdpt_{request.param}", f"vit_{request.param}"


def test_a_model_of_the_same_kind_gives_everything(tmp_path: Path) -> None:
    trained, model = made("s2tdpt_tiny", 0, time_steps=1), made("s2tdpt_tiny", 1, time_steps=4)
    told = start_from(model, source := saved(trained, tmp_path / "w"))
    there = trained.state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())
    assert model.time_steps == 4
    assert told == {
        "source": source,
        "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        "model": "a model",
    }


def test_a_twin_gives_its_matrices_its_filters_and_its_head_alone(geometry: tuple[str, str], tmp_path: Path) -> None:
    spiking, ann = geometry
    twin, model = made(ann, 0), made(spiking, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(model, saved(twin, tmp_path / "w"))
    assert isinstance(twin, VisionTransformer)
    theirs = counterparts(twin)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name] if tensor.ndim > 1 or name == "head.bias" else before[name]), name
    assert torch.equal(model.stem.conv[0].weight, twin.stem.conv[0].weight)  # pyright: ignore


def test_gains_and_offsets_of_layer_norms_go_into_what_follows() -> None:
    twin = made("vit_tiny", 0)
    assert isinstance(twin, VisionTransformer)
    taken, block, u = counterparts(twin), twin.blocks[0], torch.randn(5, 64)
    layers: Any = [
        ("blocks.0.attn.qkv", block.norm1, block.attn.qkv),
        ("blocks.0.mlp.fc1", block.norm2, block.mlp[0]),
        ("head", twin.norm, twin.head),
    ]
    for name, norm, linear in layers:
        real, bare = linear(norm(u)), F.linear(F.layer_norm(u, (64,)), taken[f"{name}.weight"])
        offset = real - bare
        expected = taken[f"{name}.bias"] if name == "head" else offset[0]
        torch.testing.assert_close(offset, expected.expand_as(offset), msg=name)
        assert (taken[f"{name}.weight"] - linear.weight).abs().max() > 0.01  # the gains are not all 1
    assert torch.equal(taken["blocks.0.mlp.fc2.weight"], block.mlp[2].weight)  # pyright: ignore


def test_a_twin_gives_a_twin_everything(tmp_path: Path) -> None:
    trained, model = (made("vit_tiny", seed, qk_norm=True) for seed in (0, 1))
    start_from(model, saved(trained, tmp_path / "w"))
    there = trained.state_dict()
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())


def test_weights_in_8_bits_give_what_a_loaded_model_has(tmp_path: Path) -> None:
    save_weights(made("s2tdpt_tiny", 0), tmp_path / "w", meta={}, dtype="int8")
    model, there = made("s2tdpt_tiny", 1), load_weights(tmp_path / "w")[0].state_dict()
    start_from(model, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    model, source = made("s2tdpt_tiny", 1), saved(made("s2tdpt_tiny", 0), tmp_path / "w")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    start_from(model, source)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("source", ["s2tdpt_tiny", "vit_tiny"])
def test_a_head_for_other_classes_stays_as_it_was_drawn(source: str, tmp_path: Path) -> None:
    model = made("s2tdpt_tiny", 1, num_classes=7)
    before = model.head.weight.clone()  # pyright: ignore
    start_from(model, saved(made(source, 0), tmp_path / "w"))
    assert torch.equal(model.head.weight, before)  # pyright: ignore


@pytest.mark.parametrize("source", ["s2tdpt_tiny", "vit_tiny"])
@pytest.mark.parametrize(("classes", "same"), [(["a", "b", "c"], True), (["c", "b", "a"], False)])
def test_so_does_one_for_as_many_others(source: str, classes: list[str], same: bool, tmp_path: Path) -> None:
    model = made("s2tdpt_tiny", 1)
    before = model.state_dict()["head.bias"].clone()
    save_weights(made(source, 0), tmp_path / "w", meta={"data": {"classes": ["a", "b", "c"]}})
    start_from(model, str(tmp_path / "w.safetensors"), classes)
    assert torch.equal(model.state_dict()["head.bias"], before) is not same


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("s2tdpt_tiny", {"depth": 2}, "another geometry"),
        ("s2tdpt_tiny", {"neuron": "plif"}, "another geometry"),
        ("vit_tiny", {"embed_dim": 32, "stem_channels": (16, 32, 32)}, "another geometry"),
        ("vit_tiny", {"depth": 2}, "another geometry"),
        ("vit_tiny", {"num_heads": 8}, "another geometry: num_heads"),
        ("s2tdpt_tiny", {"stem_pool": (False, True, False, False)}, "another geometry: stem_pool"),
        ("vit_tiny", {"in_channels": 1}, "another geometry"),
        ("vit_h_384", {}, "another geometry"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"^initial_weights: .*{why}"):
        start_from(made("s2tdpt_tiny", 1), saved(made(name, 0, **options), tmp_path / "w"))


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^initial_weights: model 's2tdpt_tinny' is unknown"):
        start_from(made("s2tdpt_tiny", 1), "s2tdpt_tinny")


def test_of_a_recipes_run_that_is_not_there_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = ImageSet("one", torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), ["a"], (0.0,), (1.0,))
    wanted = r"\(s2tdpt train digits makes it\)$"
    with pytest.raises(RecipeError, match=rf"^initial_weights: .*{wanted}"):
        start_from(made("s2tdpt_tiny", 1), "runs/digits")
    with pytest.raises(RecipeError, match=rf"^distill.teacher: .*{wanted}"):
        load_distillation(DistillRecipe("runs/digits"), images, torch.device("cpu"))
    for other in ("runs/mine", "elsewhere/digits"):
        with pytest.raises(RecipeError, match=r"or name another$"):
            start_from(made("s2tdpt_tiny", 1), other)
    Path("runs/digits").mkdir(parents=True)  # to be gone on with, not begun
    with pytest.raises(RecipeError, match=r"\(resume it, or name another folder\)$"):
        start_from(made("s2tdpt_tiny", 1), "runs/digits")


@pytest.fixture
def started(tiny: Recipe, teacher: Path) -> Recipe:
    changes = {"initial_weights": str(teacher), "model.options.depth": 2, "checkpoint_every_minutes": 0}
    return tiny.replace(**changes)


def test_a_run_starts_from_them_and_says_so(started: Recipe, teacher: Path, tmp_path: Path) -> None:
    still = {"optimizer.lr": 1e-9, "optimizer.adamw_lr": 1e-9, "optimizer.weight_decay": 0.0, "ema_decay": 0.0}
    metrics = train(started.replace(**still), tmp_path, device="cpu", progress=False)
    twin, _ = load_weights(teacher.with_suffix(""))
    assert isinstance(twin, VisionTransformer)
    model, card = load_weights(tmp_path / "model")
    name = "blocks.1.mlp.fc2.weight"
    torch.testing.assert_close(model.state_dict()[name], counterparts(twin)[name], atol=1e-5, rtol=0)
    assert metrics["initial_weights"]["source"] == card["recipe"]["initial_weights"] == str(teacher)


def test_a_run_goes_on_with_the_same_bits_though_they_have_changed_or_gone(
    started: Recipe, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(teacher.with_suffix(suffix), tmp_path / f"first{suffix}")
    recipe = started.replace(initial_weights=str(tmp_path / "first.safetensors"))
    whole = train(recipe, tmp_path / "one", device="cpu", progress=False)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "two", device="cpu", progress=False)
    (tmp_path / "first.safetensors").unlink()
    again = train(recipe, tmp_path / "two", device="cpu", progress=False, resume=True)
    assert again["initial_weights"] == whole["initial_weights"]
    one, two = (load_weights(tmp_path / run / "model")[0].state_dict() for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
