"""RandAugment's operations against Pillow, which the published recipes use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from s2tdpt.data import randaugment as ra
from s2tdpt.data.randaugment import OPERATIONS, RandAugment, RandDraws, draw_randaugment, randaugment

FILL = (125, 123, 114)
GEOMETRIC = (ra.ROTATE, ra.SHEAR_X, ra.SHEAR_Y, ra.TRANSLATE_X, ra.TRANSLATE_Y)


def pictures(count: int, channels: int = 3) -> torch.Tensor:
    """Smooth gradients, noise, dark, flat and few-valued pictures of 32 x 24."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:32, 0:24]
    kinds = [
        random.integers(0, 256, (count, channels, 32, 24)),
        (rows * 4 + columns * 3)[None, None] + random.integers(0, 20, (count, channels, 32, 24)),
        random.integers(20, 60, (count, channels, 32, 24)),
        np.broadcast_to(random.integers(0, 256, (count, channels, 1, 1)), (count, channels, 32, 24)),
        random.choice([3, 200, 255], (count, channels, 32, 24)),
    ]
    return torch.from_numpy(np.stack([kinds[i % 5][i] for i in range(count)]).clip(0, 255).astype(np.uint8))


def with_pillow(operation: int, pixels: torch.Tensor, level: float, sign: float) -> torch.Tensor:
    grey = pixels.shape[0] == 1
    picture = Image.fromarray(pixels[0].numpy() if grey else pixels.permute(1, 2, 0).numpy())
    width, height = picture.size
    amount, fill = sign * level / 10, FILL[0] if grey else FILL
    factor = max(0.1, 1 + amount * 0.9)

    def affine(*matrix: float) -> Image.Image:
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=fill
        )

    add = [min(255, i + int(level / 10 * 110)) if i < 128 else i for i in range(256)]
    out = {
        ra.AUTO_CONTRAST: lambda: ImageOps.autocontrast(picture),
        ra.EQUALIZE: lambda: ImageOps.equalize(picture),
        ra.INVERT: lambda: ImageOps.invert(picture),
        ra.ROTATE: lambda: picture.rotate(amount * 30, resample=Image.Resampling.BICUBIC, fillcolor=fill),
        ra.POSTERIZE: lambda: ImageOps.posterize(picture, 4 - int(level / 10 * 4)),
        ra.SOLARIZE: lambda: ImageOps.solarize(picture, 256 - int(level / 10 * 256)),
        ra.SOLARIZE_ADD: lambda: picture.point(add if grey else add * 3),
        ra.COLOR: lambda: ImageEnhance.Color(picture).enhance(factor),
        ra.CONTRAST: lambda: ImageEnhance.Contrast(picture).enhance(factor),
        ra.BRIGHTNESS: lambda: ImageEnhance.Brightness(picture).enhance(factor),
        ra.SHARPNESS: lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        ra.SHEAR_X: lambda: affine(1, amount * 0.3, 0, 0, 1, 0),
        ra.SHEAR_Y: lambda: affine(1, 0, 0, amount * 0.3, 1, 0),
        ra.TRANSLATE_X: lambda: affine(1, 0, amount * 0.45 * width, 0, 1, 0),
        ra.TRANSLATE_Y: lambda: affine(1, 0, 0, 0, 1, amount * 0.45 * height),
    }[operation]()
    array = np.array(out)
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", range(15))
def test_each_operation_is_pillows(operation: int, channels: int):
    x = pictures(60, channels)
    generator = torch.Generator().manual_seed(operation)
    level = torch.rand(60, generator=generator) * 9.99
    sign = torch.where(torch.rand(60, generator=generator) < 0.5, -1.0, 1.0)
    draws = RandDraws(torch.full((1, 60), operation), level[None], sign[None], (operation,))
    out = randaugment(x, draws, torch.tensor(FILL[:channels]).float())
    expected = [with_pillow(operation, *one) for one in zip(x, level.tolist(), sign.tolist(), strict=True)]
    difference = (out.int() - torch.stack(expected).int()).abs()
    if operation in GEOMETRIC:
        # Float32 coordinates against Pillow's doubles: now and then one grey level.
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01
    else:
        assert difference.max() == 0
    assert (out != x).any() or (operation == ra.COLOR and channels == 1)  # grey has no colour to change


def test_full_level_posterize_is_black():
    draws = RandDraws(torch.full((1, 4), ra.POSTERIZE), torch.full((1, 4), 10.0), torch.ones(1, 4), (ra.POSTERIZE,))
    assert randaugment(pictures(4), draws, torch.zeros(3)).max() == 0


def test_samples_have_operations_of_their_own():
    x = pictures(30)
    config = RandAugment(num_ops=2, probability=0.8)
    draws = draw_randaugment(config, 30, torch.Generator().manual_seed(0))
    fill = torch.tensor(FILL).float()
    together = randaugment(x, draws, fill)
    for i in range(30):
        operation, level, sign = (numbers[:, i : i + 1] for numbers in (draws.operation, draws.level, draws.sign))
        own = RandDraws(operation, level, sign, tuple(operation[:, 0].tolist()))
        assert torch.equal(randaugment(x[i : i + 1], own, fill)[0], together[i])


def test_a_whole_batch_at_once_gives_what_rows_alone_give():
    x = pictures(60)
    draws = draw_randaugment(RandAugment(num_ops=3, probability=0.9), 60, torch.Generator().manual_seed(0))
    fill = torch.tensor(FILL).float()
    assert torch.equal(randaugment(x, draws, fill, whole=True), randaugment(x, draws, fill, whole=False))


@pytest.mark.parametrize("operations", ["timm15", "geometric5"])
def test_draws_follow_the_configuration(operations: str):
    config = RandAugment(magnitude=9, std=0.4, num_ops=1, probability=0.5, operations=operations)
    draws = draw_randaugment(config, 30_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws.operation[0] + 1, minlength=16) / 30_000
    assert abs(counts[0] - 0.5) < 0.015
    listed = OPERATIONS[operations]
    for operation in range(15):
        wanted = 0.5 / len(listed) if operation in listed else 0.0
        assert abs(counts[operation + 1] - wanted) < 0.01
    assert abs(draws.level.mean() - 9) < 0.02
    assert abs(draws.level.std() - 0.4) < 0.02
    assert draws.level.max() <= 10
    assert abs(draws.sign.mean()) < 0.02


def test_the_lists_are_the_published_ones():
    assert len(OPERATIONS["timm15"]) == len(set(OPERATIONS["timm15"])) == 15
    assert set(OPERATIONS["geometric5"]) == {ra.EQUALIZE, ra.ROTATE, ra.SHEAR_X, ra.TRANSLATE_X, ra.TRANSLATE_Y}


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pictures():
    x = pictures(200)
    draws = draw_randaugment(RandAugment(num_ops=2, probability=1.0), 200, torch.Generator().manual_seed(0))
    fill = torch.tensor(FILL).float()
    there = RandDraws(draws.operation.cuda(), draws.level.cuda(), draws.sign.cuda(), draws.listed)
    out = randaugment(x.cuda(), there, fill.cuda()).cpu()
    assert ((out.int() - randaugment(x, draws, fill).int()).abs() > 1).float().mean() < 0.01
