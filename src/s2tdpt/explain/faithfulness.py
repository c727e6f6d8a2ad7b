"""Does a map show what the model looks at? Deletion and insertion curves (Petsiuk et al. 2018) against random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .gradcam import resolve_target
from .probe import check_images, evaluating

Baseline = Literal["blur", "mean"]


class Faithfulness(TypedDict):
    """What `faithfulness` returns."""

    deletion_auc: float
    insertion_auc: float
    random_deletion_auc: float
    random_insertion_auc: float
    margin: float
    margin_std: float
    margins: Tensor
    fractions: Tensor
    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor


def faithfulness(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    *,
    target: int | Tensor | None = None,
    baseline: Baseline | Tensor = "blur",
    points: int = 16,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> Faithfulness:
    """Deletion and insertion of the patches of images x [B, C, H, W] in the order of `maps` [B, h, w], highest first.

    Deletion replaces patches by the baseline (a strong blur of the image, its mean colour, or a tensor like x),
    insertion starts from the baseline and puts them back; the curves are the target class's probability (default: the
    predicted class) at `points` + 1 fractions from 0 to 1, AUC the area under them. `draws` random rankings an image
    set the bar. Returns means over images of `deletion_auc`, `insertion_auc`, `random_deletion_auc`,
    `random_insertion_auc`, and `margin` = ((random deletion − deletion) + (insertion − random insertion)) / 2 with its
    standard deviation over images `margin_std`; tensors `fractions` [P], `margins` [B], and the curves
    `deletion`, `insertion`, `random_deletion`, `random_insertion` [B, P].
    """
    return compare_faithfulness(
        model,
        x,
        {"maps": maps},
        target=target,
        baseline=baseline,
        points=points,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
    )["maps"]


@torch.no_grad()
def compare_faithfulness(
    model: nn.Module,
    x: Tensor,
    maps: Mapping[str, Tensor],
    *,
    target: int | Tensor | None = None,
    baseline: Baseline | Tensor = "blur",
    points: int = 16,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Faithfulness]:
    """`faithfulness` of several maps of the same images, against the same random rankings."""
    check_images(x)
    for each in maps.values():
        _check(x, each, next(iter(maps.values())).shape)
    if points < 1 or draws < 1:
        raise InputError(f"faithfulness: points and draws must be at least 1, got {points} and {draws}")
    generator = torch.Generator().manual_seed(seed)
    shape = next(iter(maps.values())).shape
    tokens = shape[1:].numel()
    counts = torch.linspace(0, tokens, min(points, tokens) + 1).round().long()
    fractions = counts / tokens
    blank = _baseline(x, baseline)

    def shuffle() -> Tensor:
        return torch.rand(shape, generator=generator).flatten(1).argsort(-1)

    with evaluating(model):
        classes = resolve_target(target, torch.cat([model(part) for part in x.split(batch_size)]))

        def curve(order: Tensor, first: Tensor, then: Tensor) -> Tensor:
            """Probabilities [B, P] as the patches turn, in this order, from `first` into `then`."""
            rank = order.argsort(-1).view(shape).unsqueeze(1).to(x.device)
            values = []
            for count in counts.tolist():
                turned = F.interpolate((rank < count).to(x.dtype), size=x.shape[-2:], mode="nearest").bool()
                mixed = torch.where(turned, then, first)
                logits = torch.cat([model(part) for part in mixed.split(batch_size)])
                values.append(logits.softmax(-1).gather(1, classes.unsqueeze(1)).squeeze(1))
            return torch.stack(values, 1).cpu()

        def both(order: Tensor) -> tuple[Tensor, Tensor]:
            return curve(order, x, blank), curve(order, blank, x)

        ties = shuffle()  # equal values fall in random order
        random = [both(shuffle()) for _ in range(draws)]
        random_deletion, random_insertion = (torch.stack(curves).mean(0) for curves in zip(*random, strict=True))
        results = {}
        for name, each in maps.items():
            scores = each.detach().flatten(1).cpu().gather(1, ties)
            order = ties.gather(1, scores.argsort(dim=-1, descending=True, stable=True))
            deletion, insertion = both(order)
            results[name] = _summary(fractions, deletion, insertion, random_deletion, random_insertion)
    return results


def _summary(
    fractions: Tensor, deletion: Tensor, insertion: Tensor, random_deletion: Tensor, random_insertion: Tensor
) -> Faithfulness:
    def area(curve: Tensor) -> Tensor:
        return torch.trapezoid(curve, fractions.to(curve.dtype), dim=1)

    margins = (area(random_deletion) - area(deletion) + area(insertion) - area(random_insertion)) / 2
    return {
        "deletion_auc": area(deletion).mean().item(),
        "insertion_auc": area(insertion).mean().item(),
        "random_deletion_auc": area(random_deletion).mean().item(),
        "random_insertion_auc": area(random_insertion).mean().item(),
        "margin": margins.mean().item(),
        "margin_std": margins.std().item() if len(margins) > 1 else 0.0,
        "margins": margins,
        "fractions": fractions,
        "deletion": deletion,
        "insertion": insertion,
        "random_deletion": random_deletion,
        "random_insertion": random_insertion,
    }


def _check(x: Tensor, maps: Tensor, shape: torch.Size) -> None:
    if x.ndim != 4:
        raise InputError(f"faithfulness: images are [B, C, H, W], got {list(x.shape)}")
    if maps.ndim != 3 or len(maps) != len(x) or x.shape[-2] % maps.shape[1] or x.shape[-1] % maps.shape[2]:
        raise InputError(
            f"faithfulness: maps are [B, h, w] with h and w dividing the images' sides, got {list(maps.shape)} "
            f"for images {list(x.shape)}"
        )
    if maps.shape != shape:
        raise InputError(f"faithfulness: maps to compare have one shape, got {list(shape)} and {list(maps.shape)}")
    if not bool(maps.isfinite().all()):
        raise InputError("faithfulness: the maps hold NaN or infinite values, which have no order")


def _baseline(x: Tensor, kind: Baseline | Tensor) -> Tensor:
    if isinstance(kind, Tensor):
        return kind.to(x).expand_as(x)
    if kind == "mean":
        return x.mean((-2, -1), keepdim=True).expand_as(x)
    if kind == "blur":
        return blur(x, sigma=max(x.shape[-2:]) / 8)
    raise InputError(f"faithfulness: baseline is 'blur', 'mean' or a tensor, got {kind!r}")


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of x [B, C, H, W] by `sigma` pixels; the border repeats."""
    radius = max(1, round(3 * sigma))
    distance = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (distance / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))
    return flat.view_as(x)
