"""scikit-learn's handwritten digits: 1,797 grey pictures of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import torch

from s2tdpt.data.sets import ImageSet, channel_statistics
from s2tdpt.errors import require

TEST_IMAGES = 360  # a fifth


def load_digits(split: str) -> ImageSet:
    """uint8 [1437 or 360, 1, 8, 8]; "test" is a fixed, stratified fifth. Needs the extra `digits`."""
    bunch = require("sklearn.datasets", "digits").load_digits()
    pixels = torch.from_numpy(bunch.images) * (255 / 16)
    images = pixels.round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    everything = ImageSet("digits", images, labels, [str(digit) for digit in range(10)], (0.0,), (1.0,))
    train, test = everything.holdout(TEST_IMAGES, seed=0)
    assert isinstance(train.images, torch.Tensor)
    mean, std = channel_statistics(train.images)
    chosen = train if split == "train" else test
    return ImageSet("digits", chosen.images, chosen.labels, chosen.classes, mean, std)
