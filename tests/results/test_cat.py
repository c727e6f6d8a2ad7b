"""The cat in README.md: one command draws it, and the tables show it once the weights that named it ship."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from results.blocks import BLOCKS, Material
from results.plots import described
from s2tdpt.cli.app import app
from s2tdpt.models import create_model, save_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cat_picture():
    spec = importlib.util.spec_from_file_location("cat_picture", ROOT / "docs" / "cat_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model for four classes of colour pictures, with drawn weights."""
    torch.manual_seed(0)
    net = create_model("s2tdpt_tiny", num_classes=4, time_steps=2, gain=64.0).train()
    with torch.no_grad():
        for weight in net.parameters():
            weight *= 4 if weight.ndim == 1 else 1
        net(torch.randn(8, 3, 16, 16))
    data = {"name": "cifar10", "mean": [0.5] * 3, "std": [0.25] * 3, "classes": list("abcd"), "image_size": [16, 16]}
    save_weights(net, tmp_path / "run" / "model", meta={"model": "s2tdpt_tiny", "data": data})
    return tmp_path / "run"


def test_the_cat_is_named_and_shown(cat_picture, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "img"
    assert cat_picture.main([str(model), "--out", str(folder)]) == 0
    told = described(folder / "cat-gradcam.png")
    printed = CliRunner().invoke(app, ["predict", str(model), str(folder / "cat.png")]).stdout.strip()
    assert printed.endswith(f"cat.png {told['answer']}")
    with Image.open(folder / "cat.png") as photo:
        assert photo.size == (451, 300)
    empty = Material(tmp_path, [], [], [], [], {})
    assert BLOCKS["cat"](empty, "README.md") == ""
    block = BLOCKS["cat"](dataclasses.replace(empty, cards={"s2tdpt_tiny.cifar10": {}}), "README.md")
    assert "s2tdpt predict s2tdpt_tiny.cifar10 docs/img/cat.png" in block
    assert told["answer"] in block
    assert "](docs/img/cat-gradcam.png)" in block


def test_weights_that_do_not_exist(cat_picture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cat_picture.main(["s2tdpt_4_384.nothing", "--out", str(tmp_path)]) == 2
    assert "s2tdpt_4_384.nothing" in capsys.readouterr().err
