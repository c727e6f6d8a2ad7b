"""Augmentation of a whole batch on its own device: numbers are drawn first, then applied by a pure function.

Order: flip and shift, RandAugment, normalisation, cutout and random erasing (both to 0, the mean), mixup or cutmix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from s2tdpt.data.randaugment import RandAugment, RandDraws, draw_randaugment, randaugment
from s2tdpt.errors import RecipeError

_ERASE_TRIES = 10
_NO_MIX = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Augment:
    """What is done to a training batch; the defaults do nothing.

    flip: mirror half of the images; shift: by up to so many pixels each way, reflecting at the border; cutout: side of
    one square set to the mean; erasing: probability of one box (area 2-33 %, aspect 0.3-3.3) set to the mean; mixup,
    cutmix: alpha of Beta(alpha, alpha), 0 = off, chosen evenly where both are on; mix_probability: share of the
    batches that mix, each with its own reverse and one lambda.
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 0.0
    randaugment: RandAugment | None = None

    def __post_init__(self) -> None:
        for name in ("shift", "cutout", "mixup", "cutmix"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"augment.{name} = {value}: it must be 0 or more")
        for name in ("erasing", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"augment.{name} = {getattr(self, name)}: a probability lies between 0 and 1")
        if (self.mix_probability > 0) != (self.mixup > 0 or self.cutmix > 0):
            raise RecipeError(
                "augment.mix_probability and one of augment.mixup, augment.cutmix go together: set both or none"
            )


class Draws(NamedTuple):
    """One batch's random numbers, all on its device; None for what is off."""

    flip: Tensor | None  # bool [B]
    shift: Tensor | None  # int64 [B, 2]: down, right
    cutout: Tensor | None  # int64 [B, 4]: box of y0, y1, x0, x1 (ends excluded, may leave the picture)
    erase: Tensor | None  # int64 [B, 4]: box; an empty one leaves the image alone
    mix: Tensor | None  # float32 [6]: lambda outside the box, lambda of the targets, box
    randaugment: RandDraws | None


NO_DRAWS = Draws(None, None, None, None, None, None)


def draw(augment: Augment, batch: int, size: tuple[int, int], generator: torch.Generator, mix: Tensor | None) -> Draws:
    """The numbers for `batch` images of (H, W) pixels from `generator`; `mix` is a row of `draw_mix`."""
    height, width = size
    uniform = torch.rand(batch, 5, generator=generator, device=generator.device)
    shift = cutout = None
    if augment.shift:
        shift = (uniform[:, 1:3] * (2 * augment.shift + 1)).long() - augment.shift
    if augment.cutout:
        y, x = (uniform[:, 3] * height).long(), (uniform[:, 4] * width).long()
        y, x = y - augment.cutout // 2, x - augment.cutout // 2
        cutout = torch.stack([y, y + augment.cutout, x, x + augment.cutout], dim=1)
    return Draws(
        flip=uniform[:, 0] < 0.5 if augment.flip else None,
        shift=shift,
        cutout=cutout,
        erase=_draw_erasing(augment.erasing, batch, height, width, generator) if augment.erasing else None,
        mix=mix if augment.mix_probability else None,
        randaugment=draw_randaugment(augment.randaugment, batch, generator) if augment.randaugment else None,
    )


def _draw_erasing(probability: float, batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """The first of ten tries whose box is smaller than the picture (Zhong et al. 2020, algorithm 1)."""
    u = torch.rand(5, batch, _ERASE_TRIES, generator=generator, device=generator.device)
    area = (0.02 + u[0] * (1 / 3 - 0.02)) * (height * width)
    aspect = torch.exp((u[1] * 2 - 1) * math.log(10 / 3))
    h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (h < height) & (w < width)
    y, x = (u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor()
    boxes = torch.stack([y, y + h, x, x + w], dim=2).long()  # [B, tries, 4]
    chosen = boxes.gather(1, fits.float().argmax(1).view(batch, 1, 1).expand(batch, 1, 4)).squeeze(1)
    applies = fits.any(1) & (u[4, :, 0] < probability)
    return chosen * applies.unsqueeze(1)


def draw_mix(augment: Augment, size: tuple[int, int], random: np.random.Generator) -> tuple[float, ...]:
    """A batch's decision on the host: (lambda outside the box, lambda of the targets, y0, y1, x0, x1)."""
    height, width = size
    mixes, prefers_cutmix = random.random(2) < (augment.mix_probability, 0.5)
    if not mixes:
        return _NO_MIX
    if not augment.cutmix or (augment.mixup and not prefers_cutmix):
        share = random.beta(augment.mixup, augment.mixup)
        return (share, share, 0.0, 0.0, 0.0, 0.0)
    side = math.sqrt(1 - random.beta(augment.cutmix, augment.cutmix))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = (int(centre) for centre in random.integers((height, width)))
    y0, y1 = max(y - half_height, 0), min(y + half_height, height)
    x0, x1 = max(x - half_width, 0), min(x + half_width, width)
    return (1.0, 1 - (y1 - y0) * (x1 - x0) / (height * width), y0, y1, x0, x1)


def apply(images: Tensor, draws: Draws, scale: Tensor, bias: Tensor, fill: Tensor) -> Tensor:
    """Augmented, normalised float32 [B, C, H, W] of uint8 [B, C, H, W]; a pure function that torch.compile takes whole.

    scale, bias: float32 [C, 1, 1], so that x * scale + bias is normalised; fill: float32 [C], the pixel value (0..255)
    that RandAugment's geometric operations put outside the picture.
    """
    if draws.flip is not None or draws.shift is not None:
        images = _flip_and_shift(images, draws.flip, draws.shift)
    if draws.randaugment is not None:
        images = randaugment(images, draws.randaugment, fill)
    x = torch.addcmul(bias, images.float(), scale)
    for boxes in (draws.cutout, draws.erase):
        if boxes is not None:
            x = x.masked_fill(_inside(boxes, x), 0.0)
    if draws.mix is not None:
        share = torch.where(_inside(draws.mix[2:].unsqueeze(0), x), 0.0, draws.mix[0])
        x = torch.lerp(x.flip(0), x, share)
    return x


def soft_targets(labels: Tensor, num_classes: int, smoothing: float, mix: Tensor | None) -> Tensor:
    """float32 [B, K]: smoothed one-hot labels, mixed with the reversed batch's as the images are."""
    off = smoothing / num_classes
    hot = labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)
    target = hot * (1 - smoothing) + off
    return target if mix is None else torch.lerp(target.flip(0), target, mix[1])


def _flip_and_shift(images: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    batch, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).unsqueeze(0)
    columns = torch.arange(width, device=device).unsqueeze(0)
    if shift is not None:
        rows = _reflect(rows - shift[:, :1], height)
        columns = _reflect(columns - shift[:, 1:], width)
    if flip is not None:
        columns = torch.where(flip.unsqueeze(1), width - 1 - columns, columns)
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _reflect(position: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - position.abs()).abs()


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """bool [n, 1, H, W] for boxes [n, 4] of y0, y1, x0, x1."""
    y0, y1, x0, x1 = boxes[:, :, None, None, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device).view(1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device)
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
