"""What the measuring commands look at: a model with its card, and images prepared as that model was trained on."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2tdpt import data as datasets
from s2tdpt.data.folder import SUFFIXES
from s2tdpt.errors import DataError, ModelError
from s2tdpt.models import load_model
from s2tdpt.training.distributed import pick_device


def load(
    spec: str, device: str | None, time_steps: int | None, *, allow_untrained: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The model on its device, in evaluation mode, and its card."""
    place = pick_device(device)
    net: Any
    net, card = load_model(spec, device=str(place), allow_untrained=allow_untrained)
    if time_steps is not None:
        net.time_steps = time_steps
    return net, card


def device_of(net: Any) -> torch.device:
    return net.head.weight.device


def training_data(card: dict[str, Any]) -> dict[str, Any]:
    """The card's entry about data: name, mean, std, classes, image_size."""
    entry = card.get("data")
    if not isinstance(entry, dict) or not {"name", "mean", "std", "classes", "image_size"} <= entry.keys():
        raise ModelError(f"{card.get('model', 'this model')} has no weights, or they do not say what data they are for")
    return entry


def classes(net: Any, card: dict[str, Any]) -> list[str]:
    names = list(training_data(card)["classes"])
    return names if len(names) == net.config.num_classes else [str(i) for i in range(net.config.num_classes)]


def load_images(
    net: Any, card: dict[str, Any], name: str | None, split: str, root: Path | None, limit: int | None
) -> datasets.ImageSet:
    """A labelled set that fits the model, normalised as the model's training data was."""
    trained_on = training_data(card) if name is None or "data" in card else None
    images = datasets.load(
        name or str(training_data(card)["name"]), split, root=root, limit=limit, progress=sys.stderr.isatty()
    )
    if images.channels != net.config.in_channels:
        raise ModelError(
            f"{images.name} has {images.channels} channel(s) and the model takes {net.config.in_channels}: "
            "choose other data or another model"
        )
    if len(images.classes) != net.config.num_classes:
        raise ModelError(
            f"{images.name} has {len(images.classes)} classes and the model knows {net.config.num_classes}: "
            "choose other data or another model"
        )
    if trained_on is None:
        return images
    if list(images.classes) != list(trained_on["classes"]):
        print(f"warning: the classes of {images.name} have other names than those the model learnt", file=sys.stderr)
    return dataclasses.replace(images, mean=tuple(trained_on["mean"]), std=tuple(trained_on["std"]))


def first_batch(net: Any, images: datasets.ImageSet, n: int) -> Tensor:
    """Up to `n` images evenly spaced over the set, normalised: float32 [n, C, H, W]."""
    some = images.limit(n)
    loader = datasets.DeviceLoader(some, len(some), device=device_of(net), shuffle=False, drop_last=False)
    return next(iter(loader.epoch(0)))[0]


def inputs(net: Any, card: dict[str, Any], name: str | None, root: Path | None, n: int) -> Tensor:
    """Test images for the model; random pixels [2, C, 32, 32] where it is untrained and `name` does not tell which.

    Raises `ModelError` for trained weights whose card does not say what data they are for.
    """
    if name is not None or "data" in card:
        return first_batch(net, load_images(net, card, name, "test", root, n), n)
    if "sha256" in card:
        what = card.get("model", "this model")
        raise ModelError(f"the card of these weights ({what}) does not say what data they are for: name it with --data")
    if net.config.family == "spiking":
        print("warning: untrained weights on random pixels: these firing rates mean nothing", file=sys.stderr)
    return noise(net, 2, 32, 32)


def noise(net: Any, n: int, height: int, width: int) -> Tensor:
    """Random pixels for the model: float32 [n, C, height, width]."""
    drawn = torch.randn(n, net.config.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    return drawn.to(device_of(net))


def expand(files: Sequence[Path]) -> list[Path]:
    """Folders replaced by the pictures directly in them."""
    paths: list[Path] = []
    for file in files:
        if file.is_dir():
            found = sorted(path for path in file.iterdir() if path.suffix.lower() in SUFFIXES)
            if not found:
                raise DataError(
                    f"{file} holds no pictures ({', '.join(sorted(SUFFIXES))}): name another folder, or files"
                )
            paths += found
        else:
            paths.append(file)
    return paths


def read(net: Any, card: dict[str, Any], path: Path) -> Tensor:
    """One picture as the model takes it: uint8 [C, H, W]."""
    height, width = training_data(card)["image_size"]
    return datasets.read_image(path, size=(height, width), channels=net.config.in_channels)


def normalise(net: Any, card: dict[str, Any], pictures: Tensor) -> Tensor:
    """uint8 [B, C, H, W] to float32 on the model's device, to the last bit as its training data was normalised."""
    about = training_data(card)
    return datasets.normalise(pictures.to(device_of(net)), about["mean"], about["std"])
