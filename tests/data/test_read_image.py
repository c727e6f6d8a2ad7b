"""Every odd picture is either read properly or refused in one line."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2tdpt.data import read_image
from s2tdpt.data.image import MAX_PIXELS, picture_size
from s2tdpt.errors import DataError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_rgb_is_read_exactly(tmp_path: Path):
    out = read_image(save(tmp_path / "a.png", Image.fromarray(RGB)))
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert torch.equal(out, as_tensor(RGB))


def test_grey_in_and_out(tmp_path: Path):
    file = save(tmp_path / "a.png", Image.fromarray(RGB[..., 0]))
    assert torch.equal(read_image(file, channels=3), as_tensor(RGB[..., :1]).expand(3, -1, -1))
    assert torch.equal(read_image(file, channels=1), as_tensor(RGB[..., :1]))
    colour = save(tmp_path / "b.png", Image.new("RGB", (3, 2), (255, 0, 0)))
    assert read_image(colour, channels=1).unique().tolist() == [76]  # ITU-R 601: 0.299 * 255


def test_one_bit_and_palette(tmp_path: Path):
    bits = Image.fromarray(RGB[..., 0] > 127)
    assert torch.equal(read_image(save(tmp_path / "a.png", bits))[0], as_tensor(np.array(bits)[..., None])[0] * 255)
    palette = Image.fromarray(RGB).quantize(16)
    expected = as_tensor(np.array(palette.convert("RGB")))
    assert torch.equal(read_image(save(tmp_path / "b.png", palette)), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str):
    pixels = np.array([[0, 257, 257 * 128, 65535]], dtype=np.uint16)
    out = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(pixels)), channels=1)
    assert out.tolist() == [[[0, 1, 128, 255]]]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_sixteen_bit_colour_is_scaled(tmp_path: Path):
    row = b"\0" + struct.pack(">6H", 65535, 0, 257 * 128, 257, 257 * 7, 65535)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(row)) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[255, 0, 128], [1, 7, 255]]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, mode: str):
    pixels = np.array([[70_000, 1]], dtype=np.float32 if mode == "F" else np.int32)
    with pytest.raises(DataError, match="save it with 8 or 16 bits"):
        read_image(save(tmp_path / "a.tif", Image.fromarray(pixels)))


def test_cmyk(tmp_path: Path):
    file = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    colour = read_image(file)[:, 4, 4].int()
    assert (colour - torch.tensor([255, 0, 0])).abs().max() <= 3


def test_transparency_lies_on_white(tmp_path: Path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = [0, 255, 51]
    expected = [255, 0, 204]
    for mode in ("RGBA", "LA"):
        file = save(tmp_path / f"{mode}.png", Image.fromarray(pixels).convert(mode))
        assert read_image(file)[:, 0].tolist() == [expected] * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putdata([0, 1])
    file = save(tmp_path / "p.png", palette, transparency=0)
    assert read_image(file)[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turn: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    assert torch.equal(read_image(file), as_tensor(np.rot90(RGB, turn).copy()))
    assert picture_size(file) == read_image(file).shape[1:]


def test_one_pixel_fills_any_size(tmp_path: Path):
    file = save(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    assert read_image(file).tolist() == [[[1]], [[2]], [[3]]]
    assert torch.equal(
        read_image(file, size=(5, 4)), torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1).expand(3, 5, 4)
    )


def test_a_size_scales_to_cover_and_crops_about_the_centre(tmp_path: Path):
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, :8], pixels[:, 8:16], pixels[:, 16:] = 10, 100, 200
    out = read_image(save(tmp_path / "a.png", Image.fromarray(pixels)), size=(4, 4))
    assert out.shape == (3, 4, 4)
    assert (out.int() - 100)[:, :, 1:3].abs().max() <= 2  # the kernel reaches a little beyond the crop


def test_an_animation_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(file)[:, 0, 0].tolist() == [255, 0, 0]


def one_line_error(file: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_image(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_empty_missing_folder_and_no_picture(tmp_path: Path):
    (tmp_path / "empty.png").write_bytes(b"")
    one_line_error(tmp_path / "empty.png", "0 bytes")
    one_line_error(tmp_path / "missing.png", "No such file")
    one_line_error(tmp_path, "directory")
    (tmp_path / "text.png").write_text("this is no picture")
    one_line_error(tmp_path / "text.png", "not a picture")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, keep: float):
    noise = RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    one_line_error(file, "truncated|damaged|not a picture")


def test_flipped_bits_never_escape_as_another_exception(tmp_path: Path):
    file = save(tmp_path / "a.png", Image.fromarray(RGB))
    content = file.read_bytes()
    for position in range(0, len(content), 3):
        broken = bytearray(content)
        broken[position] ^= 0x55
        file.write_bytes(broken)
        with contextlib.suppress(DataError):
            assert read_image(file).dtype == torch.uint8
            assert picture_size(file) == (6, 8) or position < 29  # the header ends there


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (100_000, 100_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path: Path, width: int, height: int):
    assert width * height > MAX_PIXELS
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = header + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    one_line_error(tmp_path / "bomb.png", "scale it down")


def test_channels_are_checked(tmp_path: Path):
    with pytest.raises(DataError, match="channels = 4"):
        read_image(save(tmp_path / "a.png", Image.fromarray(RGB)), channels=4)
