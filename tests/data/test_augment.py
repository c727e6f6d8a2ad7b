"""Augmentations against simple loops, and their statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from s2tdpt.data import Augment, RandAugment
from s2tdpt.data.augment import NO_DRAWS, Draws, apply, draw, draw_mix, soft_targets
from s2tdpt.data.randaugment import IDENTITY
from s2tdpt.errors import RecipeError

SCALE = torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1)
BIAS = torch.tensor([1.0, -3.0, 0.0]).view(3, 1, 1)
FILL = torch.tensor([10.0, 20.0, 30.0])


def images(batch: int = 6, height: int = 7, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    return apply(x, draws, SCALE, BIAS, FILL)


def normalised(x: torch.Tensor) -> torch.Tensor:
    return x.float() * SCALE + BIAS


def test_nothing_drawn_only_normalises():
    torch.testing.assert_close(run(images(), NO_DRAWS), normalised(images()), rtol=0, atol=1e-4)


def test_flip_and_shift_are_padding_by_reflection_and_cropping():
    x = images()
    draws = draw(Augment(flip=True, shift=3), len(x), (7, 9), generator(4), None)
    assert draws.flip is not None
    assert draws.shift is not None
    assert 0 < draws.flip.sum() < len(x)
    expected = []
    for sample, flip, (down, right) in zip(x, draws.flip, draws.shift.tolist(), strict=True):
        sample = sample.flip(-1) if flip else sample
        padded = F.pad(sample.float(), (3, 3, 3, 3), mode="reflect")
        expected.append(padded[:, 3 - down : 10 - down, 3 - right : 12 - right])
    torch.testing.assert_close(run(x, draws), normalised(torch.stack(expected)), rtol=0, atol=1e-4)


def test_shifts_are_uniform_and_reach_both_ends():
    draws = draw(Augment(shift=2), 20_000, (8, 8), generator(), None)
    assert draws.shift is not None
    for axis in (0, 1):
        share = torch.bincount(draws.shift[:, axis] + 2, minlength=5) / 20_000
        assert (share - 0.2).abs().max() < 0.015
    assert (draw(Augment(flip=True), 20_000, (8, 8), generator(), None).flip.float().mean() - 0.5).abs() < 0.015


@pytest.mark.parametrize("side", [3, 4, 20])
def test_cutout_sets_one_clipped_square_to_the_mean(side: int):
    x = images()
    draws = draw(Augment(cutout=side), len(x), (7, 9), generator(), None)
    assert draws.cutout is not None
    expected = normalised(x)
    for sample, (y0, y1, x0, x1) in zip(expected, draws.cutout.tolist(), strict=True):
        assert y1 - y0 == x1 - x0 == side
        assert 0 <= y0 + side // 2 < 7
        assert 0 <= x0 + side // 2 < 9
        sample[:, max(y0, 0) : y1, max(x0, 0) : x1] = 0
    torch.testing.assert_close(run(x, draws), expected, rtol=0, atol=1e-4)


def test_random_erasing_keeps_its_published_bounds():
    draws = draw(Augment(erasing=0.25), 20_000, (32, 32), generator(), None)
    assert draws.erase is not None
    y0, y1, x0, x1 = draws.erase.unbind(1)
    erased = (y1 > y0) & (x1 > x0)
    assert abs(erased.float().mean() - 0.25) < 0.015
    h, w = (y1 - y0)[erased], (x1 - x0)[erased]
    area = h * w / 1024
    assert area.min() > 0.01
    assert area.max() < 0.37
    assert abs(area.mean() - 0.17) < 0.02
    assert (h / w).max() < 4.5  # 10/3, and what rounding adds for small boxes
    assert (y0 >= 0).all()
    assert (y1 <= 32).all()
    assert (x1 <= 32).all()
    out = run(images(2, 32, 32), NO_DRAWS._replace(erase=torch.tensor([[1, 3, 4, 9], [0, 0, 0, 0]])))
    assert (out[0, :, 1:3, 4:9] == 0).all()
    assert torch.equal(out[1], run(images(2, 32, 32), NO_DRAWS)[1])
    assert int((out == 0).sum() - (run(images(2, 32, 32), NO_DRAWS) == 0).sum()) >= 3 * 2 * 5 - 3


def test_mixup_mixes_with_the_reversed_batch_and_so_do_targets():
    x, labels = images(5), torch.tensor([0, 1, 2, 1, 0])
    mix = torch.tensor([0.3, 0.3, 0, 0, 0, 0])
    plain = normalised(x)
    out = run(x, NO_DRAWS._replace(mix=mix))
    torch.testing.assert_close(out, 0.3 * plain + 0.7 * plain.flip(0), rtol=1e-5, atol=1e-4)
    hot = F.one_hot(labels, 4).float() * 0.9 + 0.1 / 4
    torch.testing.assert_close(soft_targets(labels, 4, 0.1, mix), 0.3 * hot + 0.7 * hot.flip(0))
    torch.testing.assert_close(soft_targets(labels, 4, 0.1, None), hot)


def test_cutmix_pastes_one_box_and_weighs_targets_by_its_area():
    augment = Augment(cutmix=1.0, mix_probability=1.0)
    x, plain = images(), normalised(images())
    for seed in range(50):
        row = draw_mix(augment, (7, 9), np.random.default_rng(seed))
        out = run(x, NO_DRAWS._replace(mix=torch.tensor(row)))
        pasted = (out == plain.flip(0)).all(1)
        own = (out == plain).all(1)
        y0, y1, x0, x1 = (int(edge) for edge in row[2:])
        assert pasted[:, y0:y1, x0:x1].all()
        own[:, y0:y1, x0:x1] = True
        assert own.all()
        own_share = 1 - (y1 - y0) * (x1 - x0) / 63
        target = soft_targets(torch.tensor([0, 1]), 2, 0.0, torch.tensor(row))
        torch.testing.assert_close(target[0], torch.tensor([own_share, 1 - own_share]))


def test_mixing_is_chosen_as_configured():
    augment = Augment(mixup=0.5, cutmix=1.0, mix_probability=0.5)
    rows = torch.tensor([draw_mix(augment, (32, 32), np.random.default_rng(i)) for i in range(4000)])
    mixup, cutmix = rows[:, 0] < 1, (rows[:, 0] == 1) & (rows[:, 1] < 1)
    assert abs(mixup.float().mean() - 0.25) < 0.03
    assert abs(cutmix.float().mean() - 0.25) < 0.03
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(rows[mixup, 0].mean() - 0.5) < 0.04
    assert abs(rows[mixup, 0].var() - 0.125) < 0.02
    only = torch.tensor(
        [draw_mix(Augment(mixup=1.0, mix_probability=1.0), (8, 8), np.random.default_rng(i)) for i in range(99)]
    )
    assert (only[:, 0] < 1).all()


def test_everything_together_is_finite_and_deterministic():
    augment = Augment(True, 2, 3, 0.5, 0.5, 0.5, 1.0, RandAugment())
    mix = torch.tensor(draw_mix(augment, (7, 9), np.random.default_rng(0)))
    first, second = (run(images(), draw(augment, 6, (7, 9), generator(3), mix)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert not torch.equal(first, run(images(), draw(augment, 6, (7, 9), generator(4), mix)))


def test_the_simple_path_is_one_graph():
    augment = Augment(flip=True, shift=2, cutout=3, erasing=0.5, mixup=0.5, mix_probability=1.0)
    mix = torch.tensor(draw_mix(augment, (7, 9), np.random.default_rng(0)))
    draws = draw(augment, 6, (7, 9), generator(), mix)
    whole = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(images(), draws, SCALE, BIAS, FILL), run(images(), draws))


def test_no_operation_waits_for_the_device():
    augment = Augment(True, 2, 3, 0.5, 0.5, 0.5, 1.0, RandAugment(num_ops=2))
    drawn = draw(augment, 6, (7, 9), generator(), torch.zeros(6))
    assert drawn.randaugment is not None
    # Tensors without data refuse whatever has to be read by the host: item(), nonzero(), boolean indexing.
    rand = drawn.randaugment
    rand = rand._replace(operation=rand.operation.to("meta"), level=rand.level.to("meta"), sign=rand.sign.to("meta"))
    boxes = {name: getattr(drawn, name).to("meta") for name in ("flip", "shift", "cutout", "erase", "mix")}
    constants = (SCALE.to("meta"), BIAS.to("meta"), FILL.to("meta"))
    out = apply(images().to("meta"), Draws(**boxes, randaugment=rand), *constants)
    assert out.shape == (6, 3, 7, 9)
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    assert soft_targets(labels, 4, 0.1, boxes["mix"]).shape == (6, 4)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"shift": -1}, "shift"),
        ({"cutout": -2}, "cutout"),
        ({"mixup": math.nan, "mix_probability": 1.0}, "mixup"),
        ({"erasing": 1.5}, "erasing"),
        ({"mix_probability": 0.5}, "mix_probability"),
        ({"mixup": 0.5}, "mix_probability"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, names: str):
    with pytest.raises(RecipeError, match=rf"augment\.{names}"):
        Augment(**settings)


@pytest.mark.parametrize("settings", [{"operations": "all"}, {"magnitude": 11.0}, {"num_ops": 0}, {"probability": 2.0}])
def test_impossible_randaugment_is_refused_by_name(settings: dict):
    with pytest.raises(RecipeError, match=f"randaugment.*{next(iter(settings))}"):
        RandAugment(**settings)


def test_randaugment_goes_through_apply():
    augment = Augment(randaugment=RandAugment(probability=0.0))
    draws = draw(augment, 6, (7, 9), generator(), None)
    assert draws.randaugment is not None
    assert (draws.randaugment.operation == IDENTITY).all()
    torch.testing.assert_close(run(images(), draws), normalised(images()), rtol=0, atol=1e-4)
    changed = draw(Augment(randaugment=RandAugment(probability=1.0)), 6, (7, 9), generator(), None)
    assert (run(images(), changed) != run(images(), NO_DRAWS)).flatten(1).any(1).all()
