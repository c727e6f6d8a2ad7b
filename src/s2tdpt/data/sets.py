"""A labelled set of pictures: in one tensor, or decoded from files whenever a batch is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from s2tdpt.data.image import read_image
from s2tdpt.errors import DataError


class PictureFiles:
    """Pictures left on disk; indexing it (tensor, slice or integer) decodes those as uint8 [n, C, H, W] on the CPU."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int = 3) -> None:
        self.paths = list(paths)
        self.shape = (len(self.paths), channels, *size)
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: str | torch.device) -> PictureFiles:
        """Itself: files are decoded on the CPU, and the loader moves each batch."""
        return self

    def take(self, index: Tensor) -> PictureFiles:
        """Another PictureFiles over the paths that `index` [n] names."""
        return PictureFiles([self.paths[i] for i in index.tolist()], self.shape[2:], self.shape[1])

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        positions = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        pictures = self.decode(positions.reshape(-1).tolist())
        return pictures[0] if positions.ndim == 0 else pictures

    def decode(self, positions: Sequence[int], each: Callable[[], object] = lambda: None) -> Tensor:
        """uint8 [len(positions), C, H, W]; calls `each` after every picture (a progress bar, say)."""
        out = torch.empty(len(positions), *self.shape[1:], dtype=torch.uint8)

        def one(job: tuple[int, int]) -> None:
            row, position = job
            out[row] = read_image(self.paths[position], size=self.shape[2:], channels=self.shape[1])

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            try:
                for _ in pool.map(one, enumerate(positions)):
                    each()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return out


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled pictures of one size.

    images: uint8 [N, C, H, W], or `PictureFiles`, which gives such a tensor when indexed; labels: int64 [N] into
    `classes`; mean, std: one number a channel, of pixel / 255 over the training pictures.
    """

    name: str
    images: Tensor | PictureFiles
    labels: Tensor
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{self.name}: {len(self.images)} pictures but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, index: Tensor) -> ImageSet:
        """The pictures that `index` (int64 [n]) names, in its order."""
        index = index.to(self.labels.device)
        files = isinstance(self.images, PictureFiles)
        images = self.images.take(index) if files else self.images[index]
        return replace(self, images=images, labels=self.labels[index])

    def limit(self, n: int | None) -> ImageSet:
        """At most `n` pictures, evenly spaced over the set; None keeps all."""
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise DataError(f"limit = {n}: at least one picture is needed")
        return self.subset(torch.arange(n) * len(self) // n)

    def holdout(self, n: int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """(rest, held): `n` pictures drawn from all classes in proportion, the same ones for the same seed."""
        if not 0 < n < len(self):
            raise DataError(f"{self.name}: cannot hold out {n} of {len(self)} pictures")
        held = stratified(self.labels.cpu(), n, seed)
        return self.subset((~held).nonzero().squeeze(1)), self.subset(held.nonzero().squeeze(1))


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """bool [N] with `n` true: each class gives its share, rounded by the largest remainder."""
    counts = torch.bincount(labels)
    share = counts.double() * n / len(labels)
    quota = share.long()
    # Ties between remainders go to the lower class, so that the choice does not depend on the sort.
    quota[torch.argsort(quota - share, stable=True)[: n - int(quota.sum())]] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for label, wanted in enumerate(quota.tolist()):
        chosen[order[labels[order] == label][:wanted]] = True
    return chosen


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) a channel of uint8 [N, C, H, W] / 255, exact: from a histogram of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        density = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        density /= density.sum()
        mean = (density * values).sum()
        means.append(float(mean))
        stds.append(max(float((density * (values - mean) ** 2).sum().sqrt()), 1e-3))
    return tuple(means), tuple(stds)
