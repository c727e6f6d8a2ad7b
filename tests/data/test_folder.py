"""Folders of pictures, in memory and streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2tdpt.data import DeviceLoader, PictureFiles, load
from s2tdpt.data.folder import load_folder
from s2tdpt.data.sets import channel_statistics
from s2tdpt.errors import DataError


def fill(folder: Path, counts: dict[str, int], size: tuple[int, int] = (6, 8), seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def test_a_fixed_stratified_fifth_is_the_test_split(tmp_path: Path):
    fill(tmp_path, {"cat": 10, "ant": 20, "bee": 5})
    train, test = (load(f"folder:{tmp_path}", split, progress=False) for split in ("train", "test"))
    assert train.classes == test.classes == ["ant", "bee", "cat"]
    assert torch.bincount(test.labels).tolist() == [4, 1, 2]
    assert torch.bincount(train.labels).tolist() == [16, 4, 8]
    assert train.image_size == (6, 8)
    together = torch.cat([train.images[:], test.images[:]]).flatten(1)
    assert len(together.unique(dim=0)) == 35
    assert train.mean == test.mean == channel_statistics(train.images)[0]


def test_train_and_test_folders(tmp_path: Path):
    fill(tmp_path / "train", {"a": 3, "b": 2})
    fill(tmp_path / "val", {"b": 1}, seed=1)
    train, test = (load_folder(str(tmp_path), split, progress=False) for split in ("train", "test"))
    assert (len(train), len(test)) == (5, 1)
    assert test.labels.tolist() == [1]
    assert test.classes == ["a", "b"]
    assert test.mean == train.mean


def test_streamed_pictures_give_the_same_batches(tmp_path: Path):
    fill(tmp_path, {"a": 12, "b": 8})
    kept = load_folder(str(tmp_path), "train", progress=False)
    streamed = load_folder(str(tmp_path), "train", memory_budget=100, progress=False)
    assert isinstance(streamed.images, PictureFiles)
    assert isinstance(kept.images, torch.Tensor)
    assert torch.equal(streamed.images[2:5], kept.images[2:5])
    assert torch.equal(streamed.images[3], kept.images[3])
    pairs = [DeviceLoader(data, 5, shuffle=True, seed=1).epoch(2, start_step=1) for data in (kept, streamed)]
    for (x, y), (other_x, other_y) in zip(*pairs, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    rest, held = streamed.holdout(4)
    assert (len(rest), len(held)) == (12, 4)
    assert torch.equal(held.images[:], kept.holdout(4)[1].images[:])


def test_a_size_may_be_named(tmp_path: Path):
    fill(tmp_path / "a", {"x": 3}, size=(9, 20))
    fill(tmp_path / "a", {"y": 3}, size=(30, 7))
    assert load(f"folder:{tmp_path / 'a'}@8x4", "train", progress=False).image_size == (8, 4)
    assert load(f"folder:{tmp_path / 'a'}@5", "train", progress=False).image_size == (5, 5)
    with pytest.raises(DataError, match="different sizes"):
        load(f"folder:{tmp_path / 'a'}", "train", progress=False)
    with pytest.raises(DataError, match="size after @"):
        load(f"folder:{tmp_path / 'a'}@0", "train", progress=False)


def test_empty_and_missing_folders_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="is not a folder"):
        load(f"folder:{tmp_path / 'none'}", "train")
    with pytest.raises(DataError, match="has no sub-folders"):
        load(f"folder:{tmp_path}", "train")
    fill(tmp_path, {"a": 2})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="b holds no pictures"):
        load(f"folder:{tmp_path}", "train")


def test_a_test_class_without_training_pictures_is_named(tmp_path: Path):
    fill(tmp_path / "train", {"a": 2})
    fill(tmp_path / "test", {"a": 1, "zebra": 1})
    with pytest.raises(DataError, match="zebra is a class without training pictures"):
        load(f"folder:{tmp_path}", "test", progress=False)


def test_too_few_pictures_for_a_test_split(tmp_path: Path):
    fill(tmp_path, {"a": 2})
    assert len(load(f"folder:{tmp_path}", "train", progress=False)) == 2
    with pytest.raises(DataError, match="too few pictures"):
        load(f"folder:{tmp_path}", "test", progress=False)


@pytest.mark.parametrize("budget", [1 << 20, 0])
def test_a_damaged_picture_is_named(tmp_path: Path, budget: int):
    fill(tmp_path, {"a": 12})
    (tmp_path / "a" / "05.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"05\.png is empty"):
        load_folder(f"{tmp_path}@6", "train", memory_budget=budget, progress=False)
