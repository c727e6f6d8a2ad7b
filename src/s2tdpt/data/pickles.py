"""Read a pickle of plain containers and numpy arrays without letting it call anything else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

from s2tdpt.errors import DataError

# Both spellings of numpy's module: pickles written before and after numpy 2.
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def read_plain_pickle(path: Path) -> Any:
    """The object in `path`: dict, list, bytes, str, numbers and numpy arrays only; raises `DataError` otherwise."""
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is not a plain pickle of arrays ({error}): get the published file again") from error
