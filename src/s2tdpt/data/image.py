"""One picture file into one uint8 tensor, whatever Pillow can read; anything else is a one-line `DataError`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from s2tdpt.errors import DataError

MAX_PIXELS = 64_000_000  # a decompression bomb is a small file that unpacks into gigabytes


def read_image(path: str | Path, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
    """uint8 [C, H, W] of the picture in `path`, `channels` 3 (RGB) or 1 (grey).

    The EXIF rotation is applied, transparency is laid on white, 16 bits are scaled to 8, CMYK and palettes are
    converted, and of an animation the first frame is taken. With `size` = (H, W) it is scaled (bicubic) to cover
    that size and cropped about its centre. Raises `DataError` for a file that is empty, truncated, no picture, or
    larger than `MAX_PIXELS`.
    """
    if channels not in (1, 3):
        raise DataError(f"channels = {channels}: pictures are read with 3 channels (RGB) or 1 (grey)")
    try:
        with _open(path) as picture:
            upright = _to_8_bit(ImageOps.exif_transpose(picture), path)
            flat = _on_white(upright).convert("RGB" if channels == 3 else "L")
        if size is not None and flat.size != (size[1], size[0]):
            flat = ImageOps.fit(flat, (size[1], size[0]), method=Image.Resampling.BICUBIC)
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error … on broken files
        raise DataError(f"{path} is truncated or damaged ({error}): replace or remove it") from error
    pixels = np.array(flat)
    return torch.from_numpy(pixels).reshape(flat.height, flat.width, channels).permute(2, 0, 1).contiguous()


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [..., C, H, W] to float32 by (x / 255 - mean) / std a channel, to the last bit as in training.

    A model's own figures are in its card: `card["data"]["mean"]` and `card["data"]["std"]` of `s2tdpt.load_model`.
    Raises `DataError` for other dtypes and numbers of channels.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim < 3 or pictures.shape[-3] != len(mean):
        found = f"{str(pictures.dtype).removeprefix('torch.')} {tuple(pictures.shape)}"
        raise DataError(f"normalise takes uint8 [..., {len(mean)}, H, W], pixels of 0 to 255, not {found}")
    scale, bias = scale_and_bias(mean, std)
    return torch.addcmul(bias.to(pictures.device), pictures.float(), scale.to(pictures.device))


def scale_and_bias(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """float32 [C, 1, 1] each, so that pixels 0..255 times scale plus bias are normalised."""
    mean64, std64 = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


def picture_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of the upright picture, from its header alone."""
    with _open(path) as picture:
        width, height = picture.size
        try:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise DataError(f"{path} is truncated or damaged ({error}): replace or remove it") from error
    return (width, height) if turned else (height, width)


def _open(path: str | Path) -> Image.Image:
    try:
        if Path(path).stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes): replace or remove it")
        picture = Image.open(path)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture that Pillow can read: replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is larger than {MAX_PIXELS:,} pixels: scale it down first") from error
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path} is truncated or damaged ({error}): replace or remove it") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise DataError(
            f"{path} has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}: scale it down"
        )
    return picture


def _to_8_bit(picture: Image.Image, path: str | Path) -> Image.Image:
    """Pillow clips when it converts 16-bit greys to 8 bits; this scales them."""
    if picture.mode == "F":
        raise DataError(f"{path} holds floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        picture.load()
        return picture
    pixels = np.asarray(picture).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{path} holds 32-bit pixels, whose range is not known: save it with 8 or 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
