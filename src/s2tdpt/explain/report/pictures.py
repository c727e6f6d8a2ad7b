"""Small pictures as data URIs: images, heat maps, overlays and spike rasters. Pillow writes, matplotlib colours."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import require
from ..gradcam import upsample

TILE = 160  # side in pixels that pictures are enlarged to, about twice the size they are shown at

_CELL, _FRAME = 9, 255  # pixels a cell where one is framed; the palette's entry for the frame


def to_rgb(image: Tensor) -> Tensor:
    """uint8 [3, H, W] from uint8 [1 or 3, H, W]; any other number of channels is averaged to grey."""
    if image.shape[0] == 3:
        return image
    return image.float().mean(0, keepdim=True).round().byte().expand(3, -1, -1)


def picture(image: Tensor) -> str:
    """Data URI of a uint8 image [C, H, W], enlarged without smoothing where small, reduced where large."""
    return _encode(Image.fromarray(_resize(to_rgb(image)).permute(1, 2, 0).numpy()))


def heat_map(
    values: Tensor, low: float, high: float, colours: str = "viridis", frame: tuple[int, int] | None = None
) -> str:
    """Data URI of a map [h, w], one pixel a value (the page enlarges it), `low` to `high` in matplotlib's `colours`.

    `frame` draws a frame around the cell in that row and column.
    """
    span = (high - low) or 1.0
    levels = ((values.detach().float().cpu() - low) / span).clamp(0, 1).mul(_FRAME - 1).round().byte()
    if frame is not None:
        levels = levels.repeat_interleave(_CELL, 0).repeat_interleave(_CELL, 1)
        cell = levels[tuple(slice(at * _CELL, (at + 1) * _CELL) for at in frame)]
        cell[[0, -1], :], cell[:, [0, -1]] = _FRAME, _FRAME
    file = Image.fromarray(levels.numpy()).convert("P")
    file.putpalette([*_palette(colours)[: 3 * _FRAME], 228, 38, 38])
    return _encode(file)


def overlay(image: Tensor, evidence: Tensor, colours: str = "inferno") -> str:
    """Data URI of a uint8 image [C, H, W] in grey under the positive part of a token map [h, w] over its peak."""
    grey = _resize(to_rgb(image)).float().mean(0)  # [H, W]
    heat = upsample(evidence.detach().float().cpu().unsqueeze(0), grey.shape)[0].clamp(min=0)
    heat = heat / heat.max().clamp(min=1e-12)
    palette = torch.tensor(_palette(colours), dtype=torch.float32).view(256, 3)
    colour = palette[(64 + heat * 191).long()]
    weight = (0.12 + 0.73 * heat).unsqueeze(-1)
    mixed = colour * weight + grey.unsqueeze(-1) * (1 - weight)
    return _encode(Image.fromarray(mixed.round().byte().numpy()), lossy=True)


def raster(spikes: Tensor, colour: tuple[int, int, int]) -> str:
    """Data URI of binary spikes [rows, columns]: one pixel each, `colour` on a transparent ground."""
    bits = (spikes.detach().cpu() > 0).to(torch.uint8).numpy()
    file = Image.fromarray(bits).convert("P")
    file.putpalette([127, 127, 127, *colour])
    return _encode(file, transparency=0)


def _resize(image: Tensor) -> Tensor:
    """uint8 [3, H, W] enlarged by a whole factor to about TILE, or reduced to it."""
    largest = max(image.shape[1:])
    if largest <= TILE:
        factor = max(1, TILE // largest)
        return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    height, width = (max(1, round(side * TILE / largest)) for side in image.shape[1:])
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def _palette(colours: str) -> list[int]:
    table = require("matplotlib", "explain").colormaps[colours](np.arange(256) / 255)
    return (table[:, :3] * 255).round().astype(int).flatten().tolist()


def _encode(file: Image.Image, *, lossy: bool = False, transparency: int | None = None) -> str:
    buffer = io.BytesIO()
    if lossy:
        file.save(buffer, "WEBP", quality=82, method=4)
    else:
        file.save(buffer, "PNG", optimize=True, **({} if transparency is None else {"transparency": transparency}))
    kind = "webp" if lossy else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
