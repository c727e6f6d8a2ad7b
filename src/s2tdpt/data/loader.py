"""Batches from pictures that live on the training device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from s2tdpt.data.augment import NO_DRAWS, Augment, apply, draw, draw_mix, soft_targets
from s2tdpt.data.image import scale_and_bias
from s2tdpt.data.sets import ImageSet
from s2tdpt.errors import DataError, RecipeError


def counter_seed(*counters: int | str) -> int:
    """A seed (63 bits) that is a pure function of the counters."""
    digest = hashlib.blake2b(repr(counters).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class DeviceLoader:
    """Normalised, augmented batches; any step can be entered directly.

    Every random number is a function of (seed, epoch, step, rank): no generator state lives between steps. Each rank
    takes `batch_size` images a step, its slice [rank::world_size] of the same global batch. With `drop_last` all ranks
    make equal, full batches; without, the last ones may differ in size, and a rank without images ends a step earlier.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise DataError(
                f"batch_size {batch_size}, rank {rank} of {world_size}: a batch needs 1 or more, a rank its place"
            )
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing = {label_smoothing}: it must be 0 or more and below 1")
        if augment is not None and augment.shift >= min(data.image_size):
            raise RecipeError(f"augment.shift = {augment.shift}: it must be smaller than the {data.image_size} pixels")
        whole = batch_size * world_size
        self.steps_per_epoch = len(data) // whole if drop_last else -(-len(data) // whole)
        if self.steps_per_epoch == 0:
            raise DataError(f"{data.name}: {len(data)} pictures do not fill one batch of {whole}: lower batch_size")
        self.device = torch.device(device)
        self.data = data.to(self.device)
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_classes = num_classes or len(data.classes)
        self.label_smoothing = label_smoothing
        self._scale, self._bias = (values.to(self.device) for values in scale_and_bias(data.mean, data.std))
        self._fill = (255 * torch.tensor(data.mean, dtype=torch.float64)).float().to(self.device)
        self._generator = torch.Generator(self.device)

    def order(self, epoch: int) -> Tensor:
        """int64 [N] on the CPU: the order of all ranks' images in this epoch."""
        if not self.shuffle:
            return torch.arange(len(self.data))
        generator = torch.Generator().manual_seed(counter_seed("order", self.seed, epoch))
        return torch.randperm(len(self.data), generator=generator)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (x float32 [B, C, H, W], target) from `start_step` on.

        target: float32 [B, K] (soft labels) with an augmentation or label smoothing, int64 [B] otherwise.
        """
        whole = self.batch_size * self.world_size
        order = self.order(epoch).to(self.device)
        steps = range(start_step, self.steps_per_epoch)
        slices = [order[step * whole : (step + 1) * whole][self.rank :: self.world_size] for step in steps]
        mixes = self._mixes(epoch, steps)
        for i, (images, labels) in enumerate(self._fetch_all(slices)):
            yield self._finish(images, labels, epoch, steps[i], None if mixes is None else mixes[i])

    def _fetch_all(self, slices: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        slices = [index for index in slices if len(index)]
        images, labels = self.data.images, self.data.labels
        if isinstance(images, Tensor):
            for index in slices:
                yield images[index], labels[index]
            return
        with ThreadPoolExecutor(1) as ahead:  # the next batch's files are decoded while this one is used
            coming = [ahead.submit(images.__getitem__, index) for index in slices[:1]]
            for i, index in enumerate(slices):
                pictures = coming.pop().result()
                coming += [ahead.submit(images.__getitem__, later) for later in slices[i + 1 : i + 2]]
                yield pictures.to(self.device), labels[index]

    def _mixes(self, epoch: int, steps: range) -> Tensor | None:
        """float32 [steps, 6] on the device: all decisions of the epoch in one copy."""
        if self.augment is None or not self.augment.mix_probability:
            return None
        rows = []
        for step in steps:
            random = np.random.default_rng(counter_seed("mix", self.seed, epoch, step, self.rank))
            rows.append(draw_mix(self.augment, self.data.image_size, random))
        return torch.tensor(rows, dtype=torch.float32).to(self.device)

    def _finish(
        self, images: Tensor, labels: Tensor, epoch: int, step: int, mix: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        soft = self.augment is not None or self.label_smoothing > 0
        draws = NO_DRAWS
        if self.augment is not None:
            self._generator.manual_seed(counter_seed("augment", self.seed, epoch, step, self.rank))
            draws = draw(self.augment, len(labels), self.data.image_size, self._generator, mix)
        x = apply(images, draws, self._scale, self._bias, self._fill)
        return x, soft_targets(labels, self.num_classes, self.label_smoothing, mix) if soft else labels
