"""What a report is made of, in one place: the model, its images, and the figures that were measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..probe import is_spiking, probabilities, token_grid


@dataclass(frozen=True)
class Material:
    """Inputs of all sections: `x` [B, C, H, W] is what the model sees, `pictures` uint8 [B, C, H, W] what we see."""

    model: nn.Module | None
    x: Tensor | None
    pictures: Tensor | None
    labels: list[int] | None
    classes: Sequence[str] | None
    metrics: Mapping[str, Any]
    ann_metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    energy: Mapping[str, Any] | None
    ann_energy: Mapping[str, Any] | None
    show: int
    command: str | None
    notes: Sequence[str]

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax [B, K] of all images, on the CPU."""
        model, x = self.seen
        return torch.cat([probabilities(model, part).float().cpu() for part in x.split(64)])

    @cached_property
    def predictions(self) -> list[int]:
        return self.probabilities.argmax(-1).tolist()

    @property
    def seen(self) -> tuple[nn.Module, Tensor]:
        """Model and its inputs; only sections that need no images may do without."""
        assert self.model is not None
        assert self.x is not None
        return self.model, self.x

    @property
    def has_images(self) -> bool:
        return self.model is not None and self.x is not None

    @property
    def spiking(self) -> bool:
        return self.model is not None and is_spiking(self.model)

    @property
    def shown(self) -> int:
        """How many images appear as pictures."""
        return min(self.show, 0 if self.x is None else len(self.x))

    @property
    def grid(self) -> tuple[int, int]:
        return token_grid(*self.seen)

    def picture(self, index: int) -> Tensor:
        assert self.pictures is not None
        return self.pictures[index]

    def class_name(self, index: int) -> str:
        if self.classes is not None and index < len(self.classes):
            return str(self.classes[index])
        return f"class {index}"

    def image_name(self, index: int) -> str:
        """How texts call an image: its number and what the model takes it for."""
        return f"image {index + 1}, predicted {self.class_name(self.predictions[index])}"


def as_inputs(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Model inputs (float, on the model's device) and pictures (uint8, CPU) of images [B, C, H, W].

    uint8 images are pictures, normalised with mean and std (of pixel / 255; without them only divided by 255). Float
    images are model inputs; pictures are made with mean and std, or else by stretching each image to 0..255.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"report: images are [B, C, H, W] with at least one image, got {list(images.shape)}")
    first = next(model.parameters())
    centre, spread = (
        torch.tensor([default] if values is None else list(values), dtype=torch.float32).view(-1, 1, 1)
        for values, default in ((mean, 0.0), (std, 1.0))
    )
    if images.dtype == torch.uint8:
        pictures = images.cpu()
        return ((pictures.float() / 255 - centre) / spread).to(first), pictures
    values = images.detach().float().cpu()
    if mean is None or std is None:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp(min=1e-12)
    else:
        values = values * spread + centre
    return images.detach().to(first), values.clamp(0, 1).mul(255).round().byte()
