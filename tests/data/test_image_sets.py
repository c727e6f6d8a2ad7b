"""Subsets, held-out parts, statistics, digits."""

from __future__ import annotations

import pytest
import torch

from s2tdpt.data import ImageSet, load
from s2tdpt.data.sets import channel_statistics, stratified
from s2tdpt.errors import DataError


def numbered(n: int = 20, classes: int = 3) -> ImageSet:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return ImageSet("numbered", images, torch.arange(n) % classes, [str(i) for i in range(classes)], (0.0,), (1.0,))


def test_subset_keeps_order_and_labels():
    part = numbered().subset(torch.tensor([5, 0, 5]))
    assert part.images[:, 0, 0, 0].tolist() == [5, 0, 5]
    assert part.labels.tolist() == [2, 0, 2]


def test_holdout_is_stratified_disjoint_and_fixed():
    data = numbered(30)
    rest, held = data.holdout(7, seed=3)
    assert sorted(torch.cat([rest.images, held.images])[:, 0, 0, 0].tolist()) == list(range(30))
    assert torch.bincount(held.labels).tolist() == [3, 2, 2]
    assert torch.equal(held.images, data.holdout(7, seed=3)[1].images)
    assert not torch.equal(held.images, data.holdout(7, seed=4)[1].images)


@pytest.mark.parametrize("n", [0, 1, 5, 17, 100])
def test_a_stratified_choice_has_exactly_n_and_fair_shares(n: int):
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 19 + [3])
    chosen = stratified(labels, n, seed=0)
    assert int(chosen.sum()) == n
    shares = torch.bincount(labels[chosen], minlength=4) - torch.bincount(labels) * n / 100
    assert shares.abs().max() < 1


def test_the_largest_remainders_are_rounded_up():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 19 + [3])
    # Shares of 5: 2.5, 1.5, 0.95, 0.05.
    assert torch.bincount(labels[stratified(labels, 5, seed=0)], minlength=4).tolist() == [3, 1, 1, 0]


@pytest.mark.parametrize("n", [0, 20, 21])
def test_an_impossible_holdout_is_refused(n: int):
    with pytest.raises(DataError, match="hold out"):
        numbered().holdout(n)


def test_limit_is_evenly_spaced():
    assert numbered().limit(4).images[:, 0, 0, 0].tolist() == [0, 5, 10, 15]
    assert len(numbered().limit(None)) == len(numbered().limit(99)) == 20
    with pytest.raises(DataError, match="limit = 0"):
        numbered().limit(0)


def test_pictures_and_labels_must_match():
    with pytest.raises(DataError, match="20 pictures but 3 labels"):
        ImageSet("x", numbered().images, torch.zeros(3, dtype=torch.int64), ["a"], (0.0,), (1.0,))


def test_channel_statistics():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.double() / 255
    mean, std = channel_statistics(images)
    torch.testing.assert_close(torch.tensor(mean).double(), x.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(std).double(), x.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


def test_digits():
    train, test = load("digits", "train"), load("digits", "test")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    counts = torch.bincount(torch.cat([train.labels, test.labels]))
    assert (torch.bincount(test.labels) - counts / 5).abs().max() < 1
    assert train.classes == [str(i) for i in range(10)]
    assert train.mean == test.mean == channel_statistics(train.images)[0]
    assert torch.equal(test.images, load("digits", "test").images)
