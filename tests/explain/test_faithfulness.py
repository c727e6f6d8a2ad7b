"""Deletion and insertion on models whose important patches are known, so that the curves can be written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from s2tdpt.errors import InputError
from s2tdpt.explain import compare_faithfulness, faithfulness

LIT = 0.9  # probability of class 1 while the decisive patch is there
DARK = 0.2


class OnePatch(nn.Module):
    """Says class 1 if patch (row 1, column 2) of the 4 x 4 patches of 2 x 2 pixels is bright, whatever else it sees."""

    def forward(self, x: Tensor) -> Tensor:
        there = (x[:, 0, 2:4, 4:6].mean((1, 2)) > 0.5).double()
        probability = DARK + (LIT - DARK) * there
        return torch.stack([1 - probability, probability], 1).log()


@pytest.fixture
def picture() -> Tensor:
    return torch.ones(3, 1, 8, 8, dtype=torch.float64)


@pytest.fixture
def truth() -> Tensor:
    maps = torch.zeros(3, 4, 4)
    maps[:, 1, 2] = 1.0
    return maps


def black(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def test_known_answers(picture, truth) -> None:
    result = faithfulness(OnePatch(), picture, truth, target=1, baseline=black(picture), draws=400)
    cell = 1 / 16
    assert result["deletion_auc"] == pytest.approx(DARK + cell / 2 * (LIT - DARK))
    assert result["insertion_auc"] == pytest.approx(LIT - cell / 2 * (LIT - DARK))
    assert result["random_deletion_auc"] == pytest.approx((LIT + DARK) / 2, abs=0.03)
    assert result["random_insertion_auc"] == pytest.approx((LIT + DARK) / 2, abs=0.03)
    best = (LIT - DARK) / 2 * (1 - cell)
    assert result["margin"] == pytest.approx(best, abs=0.03)
    assert result["margin"] > 0.25
    assert result["deletion"][0].tolist() == pytest.approx([LIT, *[DARK] * 16])
    assert result["fractions"].tolist() == [k / 16 for k in range(17)]


def test_a_wrong_map_loses_and_an_empty_one_is_random(picture, truth) -> None:
    results = compare_faithfulness(
        OnePatch(),
        picture.repeat(20, 1, 1, 1),
        {"wrong": -truth.repeat(20, 1, 1), "empty": torch.zeros(60, 4, 4)},
        target=1,
        baseline=black(picture[:1]),
        draws=20,
    )
    assert results["wrong"]["margin"] < -0.25
    assert abs(results["empty"]["margin"]) < 0.1
    assert results["empty"]["margin_std"] > 0.05  # every image's ties fall differently


def test_average_over_images(picture, truth) -> None:
    maps = truth.clone()
    maps[1] *= -1
    result = faithfulness(OnePatch(), picture, maps, target=1, baseline=black(picture))
    assert result["margins"][0] > 0.2 > -0.2 > result["margins"][1]
    assert result["margin"] == pytest.approx(result["margins"].mean().item())
    assert result["margin_std"] == pytest.approx(result["margins"].std().item())
    assert faithfulness(OnePatch(), picture[:1], maps[:1], target=1)["margin_std"] == 0.0


def test_reproducible_and_independent_of_batching(spiking, images) -> None:
    x, maps = images(), torch.rand(4, 4, 6, generator=torch.Generator().manual_seed(1))
    one = faithfulness(spiking, x, maps, points=4, draws=2, seed=5)
    two = faithfulness(spiking, x, maps, points=4, draws=2, seed=5, batch_size=3)
    for key in ("deletion", "insertion", "random_deletion", "random_insertion"):
        torch.testing.assert_close(one[key], two[key], rtol=1e-12, atol=1e-12)
    other = faithfulness(spiking, x, maps, points=4, draws=2, seed=6)
    assert not torch.equal(one["random_deletion"], other["random_deletion"])
    torch.testing.assert_close(one["deletion"][:, 0], spiking(x).softmax(-1).amax(-1))
    torch.testing.assert_close(one["insertion"][:, -1], one["deletion"][:, 0])


@pytest.mark.parametrize("baseline", ["blur", "mean"])
def test_baselines_keep_brightness_and_lose_detail(picture, baseline) -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 2, dtype=x.dtype)

    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    faithfulness(Spy(), x, torch.ones(3, 4, 4), baseline=baseline, points=1, draws=1)
    blank = seen[2]  # prediction, nothing deleted, everything deleted
    assert torch.equal(seen[1], x)
    assert (blank.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs().max() < 0.1
    assert blank.std((2, 3)).max() < 0.6 * x.std((2, 3)).min()
    torch.testing.assert_close(faithfulness(Spy(), picture, torch.ones(3, 4, 4), baseline=baseline)["margin"], 0.0)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (torch.full((3, 4, 4), float("nan")), {}, "NaN"),
        (torch.zeros(2, 4, 4), {}, r"got \[2, 4, 4\] for images \[3, 1, 8, 8\]"),
        (torch.zeros(3, 3, 4), {}, "dividing the images' sides"),
        (torch.zeros(3, 4, 4), {"points": 0}, "at least 1"),
        (torch.zeros(3, 4, 4), {"draws": 0}, "at least 1"),
        (torch.zeros(3, 4, 4), {"baseline": "black"}, "'blur', 'mean' or a tensor, got 'black'"),
        (torch.zeros(3, 4, 4), {"target": 2}, "outside"),
    ],
)
def test_bad_input(picture, maps, options, message) -> None:
    with pytest.raises(InputError, match=message):
        faithfulness(OnePatch(), picture, maps, **options)


def test_maps_of_different_grids_cannot_share_rankings(picture, truth) -> None:
    with pytest.raises(InputError, match="one shape"):
        compare_faithfulness(OnePatch(), picture, {"a": truth, "b": torch.zeros(3, 2, 2)})
