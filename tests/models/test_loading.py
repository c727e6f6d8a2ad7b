"""Models with weights by registry name, run folder or file."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from s2tdpt import create_model, list_models, load_model
from s2tdpt.errors import CheckpointError, ModelError
from s2tdpt.models import registry, save_weights

from .cases import images, small

META = {"model": "s2tdpt_tiny", "metrics": {"top1": 0.97}}
NAME = "s2tdpt_tiny.toy"


@pytest.fixture(scope="module")
def once() -> nn.Module:
    return small().float()


@pytest.fixture
def model(once: nn.Module) -> nn.Module:
    return copy.deepcopy(once)


@pytest.fixture
def shelf(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights as the package ships them, holding one tag."""
    save_weights(model, tmp_path / "weights" / NAME, meta=META, dtype="float32")
    monkeypatch.setattr(registry, "_weights_dirs", lambda: [tmp_path / "weights"])
    return tmp_path / "weights"


@pytest.fixture
def run(tmp_path: Path, model: nn.Module) -> Path:
    save_weights(model, tmp_path / "runs" / "first" / "model", meta=META)
    return tmp_path / "runs" / "first"


def test_a_run_folder_and_its_file(run: Path, model: nn.Module) -> None:
    x = images(2, 3, 8, 8).float()
    for spec in (run, str(run), run / "model.safetensors", f"{run}/model.safetensors"):
        loaded, card = load_model(spec)
        assert not loaded.training
        assert torch.equal(loaded(x), model(x))
        assert card["metrics"] == META["metrics"]


def test_a_name_with_its_tag(shelf: Path, model: nn.Module) -> None:
    x = images(2, 3, 8, 8).float()
    loaded, card = load_model(NAME)
    assert torch.equal(loaded(x), model(x))
    assert card["model"] == "s2tdpt_tiny"
    assert torch.equal(create_model(NAME, pretrained=True)(x), model(x))  # in evaluation mode
    assert NAME in list_models()
    assert list_models(pretrained=True) == [NAME]


def test_a_tag_without_pretrained_is_its_geometry_untrained(shelf: Path, model: nn.Module) -> None:
    fresh = create_model(NAME, time_steps=1)
    assert fresh.config == model.config.replace(time_steps=1)
    assert not torch.equal(fresh.head.weight, model.head.weight)


def test_pretrained_with_options(shelf: Path, model: nn.Module) -> None:
    other = create_model(NAME, pretrained=True, num_classes=2, time_steps=1)
    assert (other.head.out_features, other.time_steps) == (2, 1)
    assert torch.equal(other.stem.conv[0].weight, model.stem.conv[0].weight)
    assert load_model(NAME, num_classes=3)[0].head.out_features == 3
    with pytest.raises(ModelError, match=r"another geometry: .*stem.conv.0.weight differs"):
        create_model(NAME, pretrained=True, in_channels=1)


def test_a_tag_with_a_dot_of_its_own(shelf: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(shelf / (NAME + suffix), shelf / (f"{NAME}.v2" + suffix))
    assert f"{NAME}.v2" in list_models(pretrained=True)
    assert load_model(f"{NAME}.v2")[0].config.depth == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("s2tdpt_tiny.toi", r"'s2tdpt_tiny.toi': did you mean s2tdpt_tiny.toy\?"),
        ("s2tdpt_tiny", "'s2tdpt_tiny' has no weights: use one of s2tdpt_tiny.toy, or a run folder"),
        ("no_such_thing", "is unknown: known are"),
        ("runs/no_such_run", "runs/no_such_run is no folder of a run"),
    ],
)
def test_names_without_weights(shelf: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_an_unknown_tag_suggests_a_known_one(shelf: Path) -> None:
    for pretrained in (True, False):
        with pytest.raises(ModelError, match=r"did you mean s2tdpt_tiny.toy\?"):
            create_model("s2tdpt_tiny.toi", pretrained=pretrained)


def test_an_untrained_model_only_where_it_is_asked_for() -> None:
    model, card = load_model("vit_tiny", allow_untrained=True, num_classes=3)
    assert (model.head.out_features, card, model.training) == (3, {"model": "vit_tiny"}, False)


def test_folders_and_files_that_hold_no_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model.json: it is no finished run"):
        load_model(run.parent)
    with pytest.raises(CheckpointError, match=r"missing.json is missing"):
        load_model(tmp_path / "missing.safetensors")
    payload = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(payload[:-4])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(run)


def test_shipped_weights_load() -> None:
    """Whatever weights the package ships can be used by their names."""
    for name in list_models(pretrained=True):
        model, card = load_model(name)
        assert name.startswith(card["model"])
        assert model(torch.zeros(1, model.config.in_channels, 32, 32)).shape == (1, model.config.num_classes)
