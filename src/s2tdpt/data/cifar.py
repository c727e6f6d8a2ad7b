"""CIFAR-10 and CIFAR-100, downloaded or from a folder that the user already has."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from s2tdpt.data import archive
from s2tdpt.data.cifar_spec import PIXELS, SIDE, CifarSpec, Layout
from s2tdpt.data.pickles import read_plain_pickle
from s2tdpt.data.sets import ImageSet
from s2tdpt.errors import DataError


def load_cifar(spec: CifarSpec, split: str, root: Path, *, download: bool = True, progress: bool = True) -> ImageSet:
    """uint8 [50000 or 10000, 3, 32, 32]; CIFAR-100 has its 100 fine labels.

    `root` holds the binary or the python folder, is one itself, or holds the public binary .tar.gz; failing all
    these, the archive is downloaded into it. Raises `DataError` naming the file that is missing, incomplete or altered.
    """
    layout, folder = _locate(spec, root, download, progress)
    files = layout.train if split == "train" else layout.test
    read = _read_binary if layout is spec.binary else _read_python
    parts = [read(spec, folder / name, count) for name, count in files.items()]
    labels = np.concatenate([labels for labels, _ in parts])
    images = np.concatenate([pixels for _, pixels in parts]).reshape(-1, 3, SIDE, SIDE)
    if int(labels.max()) >= len(spec.classes):
        raise DataError(
            f"{folder}: {spec.name} has {len(spec.classes)} classes but a label is {labels.max()}: get it again"
        )
    return ImageSet(
        spec.name,
        torch.from_numpy(images),
        torch.from_numpy(labels.astype(np.int64)),
        list(spec.classes),
        spec.mean,
        spec.std,
    )


def _locate(spec: CifarSpec, root: Path, download: bool, progress: bool) -> tuple[Layout, Path]:
    for layout in (spec.binary, spec.python):
        for folder in (root / layout.folder, root):
            if any((folder / name).is_file() for name in [*layout.train, *layout.test]):
                return layout, folder
    local = root / spec.archive
    if local.is_file():
        archive.check_md5(local, spec.md5)
    elif not download:
        raise DataError(
            f"{spec.name} is not in {root}: it may hold {spec.binary.folder}/, {spec.python.folder}/ or "
            f"{spec.archive}; name another folder, or allow the download"
        )
    else:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{root} cannot be made ({error.strerror}): name another data folder") from error
        local = archive.fetch(spec.url, spec.md5, root, progress=progress)
    counts = spec.binary.train | spec.binary.test
    sizes = {name: spec.file_bytes(count) for name, count in counts.items()}
    return spec.binary, archive.unpack(local, spec.binary.folder, sizes, root)


def _existing_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} is missing or unreadable ({error.strerror}): get the set again") from error


def _read_binary(spec: CifarSpec, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    size, expected = _existing_size(file), spec.file_bytes(count)
    if size != expected:
        raise DataError(
            f"{file} has {size:,} bytes instead of {expected:,} ({count:,} images): "
            f"delete {file.parent} and get it again"
        )
    records = np.fromfile(file, dtype=np.uint8).reshape(count, spec.label_bytes + PIXELS)
    return records[:, spec.label_bytes - 1], records[:, spec.label_bytes :]


def _read_python(spec: CifarSpec, file: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    _existing_size(file)
    if archive.file_md5(file) != spec.python_md5[file.name]:
        warnings.warn(f"{file} is not the published file (other md5); only its arrays are read", stacklevel=2)
    # Restricted even when the checksum is right: the published files need no more.
    content = read_plain_pickle(file)
    if isinstance(content, dict):
        content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = content.get("data"), np.asarray(content.get(spec.label_key))
        labels_fit = labels.shape == (count,) and labels.dtype.kind in "iu" and labels.min() >= 0
        if (
            labels_fit
            and isinstance(pixels, np.ndarray)
            and (pixels.dtype, pixels.shape) == (np.uint8, (count, PIXELS))
        ):
            return labels, pixels
    raise DataError(
        f"{file} does not hold {count:,} images of {PIXELS} bytes ('data') and as many labels ({spec.label_key!r}): "
        f"delete {file.parent} and get it again"
    )
