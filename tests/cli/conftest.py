"""The command line in this process, and a model folder as a finished run leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from s2tdpt import data
from s2tdpt.cli.app import app
from s2tdpt.models import create_model, save_weights

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    """`cli("evaluate", …)` as `s2tdpt evaluate …`; the exception of a bug is raised here."""

    def invoke(*arguments: object, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="s2tdpt", env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """The one line on stderr with which a command refuses its input; fails unless it does so with exit code 2."""

    def invoke(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    return invoke


@pytest.fixture(scope="session")
def digits() -> data.ImageSet:
    return data.load("digits", "test")


@pytest.fixture
def finished(tmp_path: Path, digits: data.ImageSet) -> Path:
    """A small model for digits with drawn weights and measured statistics, in a run's folder."""
    torch.manual_seed(0)
    model = create_model("s2tdpt_tiny", in_channels=1, num_classes=10, time_steps=2).train()
    with torch.no_grad():  # gains and statistics with which neurons fire, and a head that tells pictures apart
        for weight in model.parameters():
            weight *= 4 if weight.ndim == 1 else 1
        for x, _ in data.DeviceLoader(digits, 60).epoch(0):
            model(x)
        model.head.weight *= 50
        model.head.bias -= model.eval()(x).mean(0)
    card = {
        "model": "s2tdpt_tiny",
        "data": {
            "name": "digits",
            "mean": list(digits.mean),
            "std": list(digits.std),
            "classes": digits.classes,
            "image_size": [8, 8],
        },
    }
    save_weights(model, tmp_path / "run/model", meta=card)
    return tmp_path / "run"


@pytest.fixture
def picture(tmp_path: Path, digits: data.ImageSet) -> Path:
    """A test digit as a PNG file."""
    Image.fromarray(digits.images[0, 0].numpy()).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"
