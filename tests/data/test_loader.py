"""The loader's batches are functions of (seed, epoch, step, rank) and nothing else."""

from __future__ import annotations

import pytest
import torch

from s2tdpt.data import Augment, DeviceLoader, ImageSet, RandAugment, normalise
from s2tdpt.data.loader import counter_seed
from s2tdpt.errors import DataError, RecipeError

FULL = Augment(
    flip=True, shift=1, cutout=2, erasing=0.3, mixup=0.5, cutmix=0.5, mix_probability=0.5, randaugment=RandAugment()
)


def pictures(n: int = 23) -> ImageSet:
    """Picture i is filled with the value i, so that a plain batch tells which pictures it holds."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 6, 5).contiguous()
    return ImageSet("numbers", images, torch.arange(n) % 4, list("abcd"), (0.0,) * 3, (1 / 255,) * 3)


def numbers(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    return batch[0][:, 0, 0, 0].round().int().tolist()


def visited(loader: DeviceLoader, epoch: int) -> list[int]:
    return [number for batch in loader.epoch(epoch) for number in numbers(batch)]


def same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_without_shuffling_every_picture_comes_once_in_order():
    loader = DeviceLoader(pictures(), 5)
    batches = list(loader.epoch(0))
    assert loader.steps_per_epoch == len(batches) == 5
    assert visited(loader, 0) == list(range(23))
    assert batches[0][1].dtype == torch.int64
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 4 for i in range(23)]


def test_pixels_are_normalised():
    data = pictures()
    data = ImageSet("x", data.images, data.labels, data.classes, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    x, _ = next(DeviceLoader(data, 23).epoch(0))
    expected = (data.images / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32


def test_shuffling_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[int]:
        return visited(DeviceLoader(pictures(), 4, shuffle=True, seed=seed), epoch)

    assert order(0, 3) == order(0, 3)
    assert sorted(order(0, 3)) == list(range(23))
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize("augment", [None, FULL])
@pytest.mark.parametrize("drop_last", [False, True])
def test_any_step_can_be_entered(augment: Augment | None, drop_last: bool):
    def loader() -> DeviceLoader:
        return DeviceLoader(pictures(), 4, augment=augment, seed=5, shuffle=True, drop_last=drop_last)

    whole = list(loader().epoch(7))
    used = loader()
    list(used.epoch(2))
    for start in range(loader().steps_per_epoch + 1):
        rest = list(used.epoch(7, start_step=start))
        assert len(rest) == len(whole) - start
        assert all(same(*pair) for pair in zip(rest, whole[start:], strict=True))


def test_steps_epochs_seeds_and_ranks_augment_differently():
    data = pictures().subset(torch.full((64,), 7))

    def cut_out(seed: int = 0, epoch: int = 0, step: int = 0, rank: int = 0) -> torch.Tensor:
        loader = DeviceLoader(data, 4, augment=Augment(cutout=3), seed=seed, rank=rank, world_size=2)
        return next(loader.epoch(epoch, start_step=step))[0] == 0

    first = cut_out()
    assert torch.equal(first, cut_out())
    for key in ("seed", "epoch", "step", "rank"):
        assert not torch.equal(first, cut_out(**{key: 1}))


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_global_batch(drop_last: bool):
    settings = {"shuffle": True, "seed": 3, "drop_last": drop_last}
    together = list(DeviceLoader(pictures(), 6, **settings).epoch(1))
    ranks = [list(DeviceLoader(pictures(), 3, rank=rank, world_size=2, **settings).epoch(1)) for rank in (0, 1)]
    for step, batch in enumerate(together):
        parts = [numbers(rank[step]) for rank in ranks]
        assert parts == [numbers(batch)[0::2], numbers(batch)[1::2]]
    if drop_last:
        assert {len(x) for rank in ranks for x, _ in rank} == {3}


def test_a_rank_without_images_ends_a_step_earlier():
    batches = [list(DeviceLoader(pictures(5), 2, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    assert [[numbers(batch) for batch in rank] for rank in batches] == [[[0, 2], [4]], [[1, 3]]]


def test_targets_are_soft_when_asked_for():
    smooth = next(DeviceLoader(pictures(), 4, label_smoothing=0.2).epoch(0))[1]
    assert smooth.dtype == torch.float32
    torch.testing.assert_close(smooth[1], torch.tensor([0.05, 0.85, 0.05, 0.05]))
    hard = next(DeviceLoader(pictures(), 4, augment=Augment(flip=True), num_classes=6).epoch(0))[1]
    assert hard.shape == (4, 6)
    assert hard.sum(1).tolist() == [1.0] * 4
    for _, target in DeviceLoader(pictures(), 4, augment=FULL, label_smoothing=0.1).epoch(0):
        torch.testing.assert_close(target.sum(1), torch.ones(len(target)))


def test_impossible_settings_are_refused():
    with pytest.raises(DataError, match="lower batch_size"):
        DeviceLoader(pictures(), 24, drop_last=True)
    with pytest.raises(DataError, match="batch_size 0"):
        DeviceLoader(pictures(), 0)
    with pytest.raises(DataError, match="rank 2 of 2"):
        DeviceLoader(pictures(), 1, rank=2, world_size=2)
    with pytest.raises(RecipeError, match=r"augment\.shift = 5"):
        DeviceLoader(pictures(), 1, augment=Augment(shift=5))
    with pytest.raises(RecipeError, match="label_smoothing"):
        DeviceLoader(pictures(), 1, label_smoothing=1.0)


def test_seeds_are_fixed_for_all_time():
    # A resumed run must draw what the first part would have drawn, whatever Python's own hash does.
    assert counter_seed("order", 0, 0) == 8105155533265743171
    assert len({counter_seed("augment", a, b, c) for a in range(9) for b in range(9) for c in range(9)}) == 729


@pytest.mark.gpu
def test_batches_on_a_gpu_hold_the_same_pictures():
    here = list(DeviceLoader(pictures(), 4, shuffle=True, seed=2).epoch(1))
    there = list(DeviceLoader(pictures(), 4, shuffle=True, seed=2, device="cuda").epoch(1))
    for (x, y), (other_x, other_y) in zip(here, there, strict=True):
        torch.testing.assert_close(x, other_x.cpu())
        assert torch.equal(y, other_y.cpu())
    loader = DeviceLoader(pictures(), 4, augment=FULL, shuffle=True, device="cuda")
    whole = list(loader.epoch(1))
    assert all(same(*pair) for pair in zip(loader.epoch(1, start_step=2), whole[2:], strict=True))


def test_pictures_are_normalised_as_the_loader_does() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    mean, std = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
    data = ImageSet("pictures", images, torch.zeros(2, dtype=torch.int64), ["one"], mean, std)
    ((x, _),) = DeviceLoader(data, 2).epoch(0)
    assert torch.equal(normalise(images, mean, std), x)
    assert torch.equal(normalise(images[0], mean, std), x[0])
    for wrong in (images / 255, images[:, :1], images[0, 0]):
        with pytest.raises(DataError, match=r"takes uint8 \[\.\.\., 3, H, W\]"):
            normalise(wrong, mean, std)
    exact = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(x.double(), exact, rtol=0, atol=1e-6)
