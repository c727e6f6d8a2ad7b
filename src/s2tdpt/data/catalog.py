"""`load`: a data set by name."""

from __future__ import annotations

import os
from pathlib import Path

from s2tdpt.data.cifar import load_cifar
from s2tdpt.data.cifar_spec import CIFAR10, CIFAR100
from s2tdpt.data.digits import load_digits
from s2tdpt.data.folder import load_folder
from s2tdpt.data.sets import ImageSet
from s2tdpt.errors import DataError

ROOT_VARIABLE = "S2TDPT_DATA"
_CIFAR = {spec.name: spec for spec in (CIFAR10, CIFAR100)}


def data_root() -> Path:
    """$S2TDPT_DATA, else the user's cache folder."""
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2tdpt"


def load(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    limit: int | None = None,
    progress: bool = True,
) -> ImageSet:
    """The "train" or "test" pictures of "cifar10", "cifar100", "digits", "folder:PATH" or "folder:PATH@SIDE".

    `root` is where CIFAR lies or is downloaded to (default: `data_root()`); `limit` keeps that many pictures, evenly
    spaced. Raises `DataError` for anything unknown, missing or damaged.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: 'train' or 'test'")
    if name in _CIFAR:
        where = Path(root).expanduser() if root is not None else data_root()
        data = load_cifar(_CIFAR[name], split, where, download=download, progress=progress)
    elif name == "digits":
        data = load_digits(split)
    elif name.startswith("folder:"):
        data = load_folder(name.removeprefix("folder:"), split, progress=progress)
    else:
        raise DataError(f"unknown data set {name!r}: {', '.join(_CIFAR)}, digits or folder:PATH")
    return data.limit(limit)
