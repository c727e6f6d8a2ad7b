"""RandAugment with one draw a sample, in batched integer-exact tensor operations (Pillow's arithmetic).

timm's `rand-m9-n1-mstd0.4-inc1` has fifteen operations; the lists published beside several spiking Transformers under
the same name have five, without any colour operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from s2tdpt.errors import RecipeError

AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD = range(7)
COLOR, CONTRAST, BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(7, 15)
IDENTITY = -1
OPERATIONS: dict[str, tuple[int, ...]] = {
    "timm15": tuple(range(15)),
    "geometric5": (EQUALIZE, ROTATE, SHEAR_X, TRANSLATE_X, TRANSLATE_Y),
}
_MAX_LEVEL = 10.0


@dataclass(frozen=True)
class RandAugment:
    """num_ops operations a sample, each applied with `probability` at a level N(magnitude, std) cut to 0..10."""

    magnitude: float = 9.0
    std: float = 0.4
    num_ops: int = 1
    probability: float = 0.5
    operations: str = "timm15"

    def __post_init__(self) -> None:
        if self.operations not in OPERATIONS:
            raise RecipeError(f"randaugment.operations = {self.operations!r}: one of {', '.join(OPERATIONS)}")
        if not (0 <= self.magnitude <= _MAX_LEVEL and 0 <= self.std < math.inf):
            raise RecipeError(f"randaugment.magnitude = {self.magnitude}, std = {self.std}: 0 to 10, and 0 or more")
        if self.num_ops < 1 or not 0 <= self.probability <= 1:
            raise RecipeError(
                f"randaugment.num_ops = {self.num_ops}, probability = {self.probability}: 1 or more, 0 to 1"
            )


class RandDraws(NamedTuple):
    operation: Tensor  # int64 [num_ops, B]: one of the constants above, or IDENTITY
    level: Tensor  # float32 [num_ops, B] in 0..10
    sign: Tensor  # float32 [num_ops, B]: -1 or 1
    listed: tuple[int, ...]  # the operations that may have been drawn


def draw_randaugment(config: RandAugment, batch: int, generator: torch.Generator) -> RandDraws:
    """Operations are drawn evenly and with replacement, a sample's own each."""
    device = generator.device
    listed = OPERATIONS[config.operations]
    u = torch.rand(3, config.num_ops, batch, generator=generator, device=device)
    normal = torch.randn(config.num_ops, batch, generator=generator, device=device)
    drawn = _table(listed, device)[(u[1] * len(listed)).long()]
    operation = torch.where(u[0] < config.probability, drawn, IDENTITY)
    level = (config.magnitude + config.std * normal).clamp(0, _MAX_LEVEL)
    return RandDraws(operation, level, torch.where(u[2] < 0.5, -1.0, 1.0), listed)


@cache
def _table(listed: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(listed, device=device)  # kept, because copying it makes the host wait for the device


def randaugment(images: Tensor, draws: RandDraws, fill: Tensor, *, whole: bool | None = None) -> Tensor:
    """uint8 [B, C, H, W] to the same; `fill` [C] (0..255) goes where geometric operations look outside the picture.

    whole: compute each family of operations for all samples and keep what was drawn, or for the drawn rows alone. The
    first is the default on a GPU, where it costs less than waiting to hear which rows those are.
    """
    whole = images.device.type != "cpu" if whole is None else whole
    border = fill.round().int().view(1, -1, 1, 1)
    for operation, level, sign in zip(draws.operation, draws.level, draws.sign, strict=True):
        before = images.int()
        after = before.clone()
        for family, change in _FAMILIES:
            chosen = torch.zeros_like(operation, dtype=torch.bool)
            for member in family:
                if member in draws.listed:
                    chosen = chosen | (operation == member)
            if whole and any(member in draws.listed for member in family):
                changed = change(before, operation, level, sign, border)
                after = torch.where(chosen.view(-1, 1, 1, 1), changed, after)
            elif not whole and bool(chosen.any()):
                rows = chosen.nonzero().squeeze(1)
                after[rows] = change(before[rows], operation[rows], level[rows], sign[rows], border)
        images = after.to(torch.uint8)
    return images


def _auto_contrast(x: Tensor, *_: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a flat channel stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    span = (high - low).double()
    scale = torch.full_like(span, 255) / span  # number / tensor would be a rounded reciprocal times the number
    stretched = (x * scale - low * scale).clamp(0, 255).nan_to_num().int()
    return torch.where(high > low, stretched, x)


def _equalize(x: Tensor, *_: Tensor) -> Tensor:
    """Flatten each channel's histogram; sorting gives the counts without atomic additions."""
    batch, channels, height, width = x.shape
    pixels = x.view(batch * channels, height * width)
    ordered = pixels.sort(dim=1).values
    values = torch.arange(256, device=x.device, dtype=x.dtype).expand(len(pixels), 256).contiguous()
    below = torch.searchsorted(ordered, values)  # pixels darker than each value
    brightest = ordered[:, -1:]
    step = below.gather(1, brightest.long()) // 255
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, values)
    return table.gather(1, pixels.long()).view_as(x).int()


def _pointwise(x: Tensor, operation: Tensor, level: Tensor, *_: Tensor) -> Tensor:
    kind, level = operation.view(-1, 1, 1, 1), level.view(-1, 1, 1, 1)
    threshold = 256 - (level / 10 * 256).int()
    added = torch.where(x < 128, (x + (level / 10 * 110).int()).clamp(max=255), x)
    kept = 4 - (level / 10 * 4).int()  # bits
    step = torch.bitwise_left_shift(torch.ones_like(kept), 8 - kept)
    out = torch.where((kind == INVERT) | (x >= threshold), 255 - x, x)
    out = torch.where(kind == SOLARIZE_ADD, added, out)
    return torch.where(kind == POSTERIZE, x - x % step, out)


def _enhance(x: Tensor, operation: Tensor, level: Tensor, sign: Tensor, *_: Tensor) -> Tensor:
    """Blend with a degenerate picture: grey (colour), its mean (contrast), black (brightness), smooth (sharpness)."""
    kind = operation.view(-1, 1, 1, 1)
    factor = (1 + sign * level / 10 * 0.9).clamp(min=0.1).view(-1, 1, 1, 1)
    grey = x
    if x.shape[1] == 3:
        grey = (x[:, :1] * 19595 + x[:, 1:2] * 38470 + x[:, 2:] * 7471 + 0x8000) >> 16
    mean = (grey.double().mean((1, 2, 3), keepdim=True) + 0.5).int()
    degenerate = torch.where(kind == COLOR, grey, torch.zeros_like(x))
    degenerate = torch.where(kind == CONTRAST, mean, degenerate)
    degenerate = torch.where(kind == SHARPNESS, _smooth(x), degenerate)
    return (degenerate + factor * (x - degenerate)).clamp(0, 255).int()


def _smooth(x: Tensor) -> Tensor:
    """3x3 mean with the centre counted five times; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    sums = F.avg_pool2d(x.double(), 3, stride=1, divisor_override=1) + 4 * x[:, :, 1:-1, 1:-1]
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).int()
    return out


def _geometric(x: Tensor, operation: Tensor, level: Tensor, sign: Tensor, border: Tensor) -> Tensor:
    """Affine maps from output to input pixels, sampled with Pillow's bicubic kernel (a = -1)."""
    batch, channels, height, width = x.shape
    amount = sign * level / 10
    angle = torch.where(operation == ROTATE, -amount * math.radians(30), torch.zeros_like(amount))
    shear_x, shear_y, move_x, move_y = (
        torch.where(operation == member, amount * reach, torch.zeros_like(amount)).view(-1, 1, 1)
        for member, reach in ((SHEAR_X, 0.3), (SHEAR_Y, 0.3), (TRANSLATE_X, 0.45 * width), (TRANSLATE_Y, 0.45 * height))
    )
    rows = torch.arange(height, device=x.device).view(1, -1, 1) + 0.5
    columns = torch.arange(width, device=x.device).view(1, 1, -1) + 0.5
    # Only a rotation turns about the centre; shears and shifts leave the upper left corner where it is.
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    turned_x = cos * (columns - width / 2) + sin * (rows - height / 2) + width / 2
    turned_y = cos * (rows - height / 2) - sin * (columns - width / 2) + height / 2
    source_x = turned_x + shear_x * rows + move_x
    source_y = turned_y + shear_y * columns + move_y
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)

    left, weights_x = _cubic(source_x - 0.5)
    top, weights_y = _cubic(source_y - 0.5)
    taps = torch.arange(-1, 3, device=x.device).view(1, 4, 1, 1)
    near_rows = (top.unsqueeze(1) + taps).clamp(0, height - 1)
    near_columns = (left.unsqueeze(1) + taps).clamp(0, width - 1)
    index = near_rows.unsqueeze(2) * width + near_columns.unsqueeze(1)  # [B, 4, 4, H, W]
    flat = x.view(batch, channels, 1, -1).expand(-1, -1, 16, -1)
    values = flat.gather(3, index.view(batch, 1, 16, -1).expand(-1, channels, -1, -1))
    weights = (weights_y.unsqueeze(2) * weights_x.unsqueeze(1)).view(batch, 1, 16, -1)
    # The small addend keeps rounding from turning a whole number into the one below.
    sampled = ((values * weights).sum(2) + 1e-3).clamp(0, 255).int().view_as(x)
    return torch.where(outside.unsqueeze(1), border, sampled)


def _cubic(position: Tensor) -> tuple[Tensor, Tensor]:
    """(whole part, weights [B, 4, H, W] of the pixels at -1, 0, 1, 2 from it)."""
    whole = position.floor()
    t = position - whole
    weights = (-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, t**3 - t**2)
    return whole.long(), torch.stack(weights, dim=1)


_FAMILIES = (
    ((AUTO_CONTRAST,), _auto_contrast),
    ((EQUALIZE,), _equalize),
    ((INVERT, SOLARIZE, SOLARIZE_ADD, POSTERIZE), _pointwise),
    ((COLOR, CONTRAST, BRIGHTNESS, SHARPNESS), _enhance),
    ((ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y), _geometric),
)
