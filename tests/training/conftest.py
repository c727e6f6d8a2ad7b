"""A recipe and pictures so small that a whole run takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2tdpt.data import load
from s2tdpt.models import create_model, save_weights
from s2tdpt.training.recipe import Recipe

TRAIN, TEST, SIDE = 12, 6, 8  # pictures a class, pixels
GEOMETRY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2, "stem_channels": [4, 4, 8]}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and bright on the left, in train/ and test/."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[:, : SIDE // 2] += np.uint8(55 * label)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture
def tiny(pictures: Path) -> Recipe:
    """Three epochs of three steps at T = 1, then two at T = 2; augmentation, average and clipping on."""
    return Recipe.from_dict(
        {
            "name": "tiny",
            "model": {"name": "s2tdpt_tiny", "options": GEOMETRY},
            "data": {"name": f"folder:{pictures}", "batch_size": 8, "eval_batch_size": 5},
            "augment": {"flip": True, "shift": 1, "mixup": 0.2, "mix_probability": 0.5},
            "optimizer": {"name": "muon", "lr": 0.02, "weight_decay": 0.01, "clip_grad_norm": 1.0},
            "schedule": {"time_steps": "1:3,2:2", "warmup": 0.1},
            "label_smoothing": 0.05,
            "ema_decay": 0.8,
        }
    )


@pytest.fixture(scope="session")
def teacher(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an ANN twin that has opinions on the tiny pictures, as a finished run leaves them."""
    torch.manual_seed(5)
    model = create_model("vit_tiny", num_classes=2, **{**GEOMETRY, "depth": 2})
    with torch.no_grad():
        model.head.weight.mul_(20)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    data = load(f"folder:{pictures}", "train", progress=False)
    card = {"name": data.name, "mean": list(data.mean), "std": list(data.std), "classes": list(data.classes)}
    path = tmp_path_factory.mktemp("teacher") / "model"
    save_weights(model, path, meta={"model": "vit_tiny", "data": {**card, "image_size": [SIDE, SIDE]}})
    return path.with_suffix(".safetensors")
