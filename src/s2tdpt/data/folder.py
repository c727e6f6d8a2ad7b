"""A folder of pictures, one sub-folder a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from s2tdpt.data.image import picture_size
from s2tdpt.data.sets import ImageSet, PictureFiles, channel_statistics, stratified
from s2tdpt.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
MEMORY_BUDGET = 4 << 30  # bytes of decoded pictures that are kept in memory
_STATISTICS_SAMPLE = 1_000
_TEST_NAMES = ("test", "val", "validation")


def load_folder(where: str, split: str, *, memory_budget: int = MEMORY_BUDGET, progress: bool = True) -> ImageSet:
    """The pictures under `where`, a path or path@SIDE or path@HxW (the size in pixels that all are brought to).

    PATH/train/CLASS/… with PATH/test/CLASS/… (or val/, validation/), or PATH/CLASS/…, of which a fixed, stratified
    fifth is then "test". They are decoded once if that takes at most `memory_budget` bytes, else whenever a batch asks.
    mean and std come from up to 1,000 evenly spaced training pictures. Without a size all must have the same one.
    """
    path, size = _parse(where)
    train_folder, test_folder = _split_folders(path)
    classes = _class_names(train_folder)
    paths, labels = _list_pictures(train_folder, classes)
    train = torch.ones(len(labels), dtype=torch.bool)
    if test_folder is None:
        train = ~stratified(labels, len(labels) // 5, seed=0)
    train_paths = [file for file, chosen in zip(paths, train.tolist(), strict=True) if chosen]
    size = size or _common_size(paths, path)
    sample = PictureFiles(train_paths, size)
    rows = torch.arange(min(len(sample), _STATISTICS_SAMPLE))
    mean, std = channel_statistics(sample[rows * len(sample) // len(rows)])

    if split == "train":
        paths, labels = train_paths, labels[train]
    elif test_folder is None:
        paths, labels = [file for file, kept in zip(paths, train.tolist(), strict=True) if not kept], labels[~train]
    else:
        paths, labels = _list_pictures(test_folder, classes)
    if not paths:
        raise DataError(f"{path} has too few pictures for a test split: add some, or make train/ and test/")
    files = PictureFiles(paths, size)
    images: torch.Tensor | PictureFiles = files
    if len(paths) * 3 * size[0] * size[1] <= memory_budget:
        with tqdm(total=len(paths), desc=f"reading {path.name}", unit="picture", disable=not progress) as bar:
            images = files.decode(range(len(paths)), each=bar.update)
    return ImageSet(f"folder:{where}", images, labels, classes, mean, std)


def _parse(where: str) -> tuple[Path, tuple[int, int] | None]:
    path = Path(where).expanduser()
    size = re.fullmatch(r"(.+)@(\d+)(?:x(\d+))?", where)
    if size is None or path.exists():
        return path, None
    height = int(size[2])
    width = int(size[3] or height)
    if not (0 < height <= 4096 and 0 < width <= 4096):
        raise DataError(f"folder:{where}: the size after @ must be 1 to 4096 pixels")
    return Path(size[1]).expanduser(), (height, width)


def _split_folders(path: Path) -> tuple[Path, Path | None]:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: it should hold one sub-folder of pictures a class")
    if not (path / "train").is_dir():
        return path, None
    return path / "train", next((path / name for name in _TEST_NAMES if (path / name).is_dir()), None)


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no sub-folders: it should hold one of pictures for each class")
    return names


def _list_pictures(folder: Path, classes: Sequence[str]) -> tuple[list[Path], torch.Tensor]:
    unknown = set(_class_names(folder)) - set(classes)
    if unknown:
        raise DataError(f"{folder / min(unknown)} is a class without training pictures: add some, or remove it")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            file for file in (folder / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not found and (folder / name).is_dir():
            raise DataError(f"{folder / name} holds no pictures ({' '.join(sorted(SUFFIXES))}): add some, or remove it")
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels, dtype=torch.int64)


def _common_size(paths: Sequence[Path], path: Path) -> tuple[int, int]:
    first = picture_size(paths[0])
    for other in paths[1:]:
        if picture_size(other) != first:
            raise DataError(
                f"{path} holds pictures of different sizes ({paths[0].name}, {other.name}): "
                f"name one, as in folder:{path}@64"
            )
    return first
