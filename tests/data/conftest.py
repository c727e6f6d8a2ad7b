"""A CIFAR in miniature: the same layouts and checks, 3 classes, a few images."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from s2tdpt.data.cifar_spec import CifarSpec, Layout

TRAIN = {"one.bin": 5, "two.bin": 5}
TEST = {"test.bin": 4}


@dataclass
class MiniCifar:
    spec: CifarSpec
    files: dict[str, bytes]
    labels: np.ndarray
    pixels: np.ndarray

    def write_archive(self, path: Path, extra: list[tuple[tarfile.TarInfo, bytes]] | None = None) -> Path:
        """The .tar.gz with `extra` members; self.spec then expects its checksum."""
        with tarfile.open(path, "w:gz") as tar:
            for name, content in self.files.items():
                info = tarfile.TarInfo(f"{self.spec.binary.folder}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            for info, content in extra or []:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        self.spec = replace(self.spec, md5=hashlib.md5(path.read_bytes()).hexdigest())
        return path

    def write_binary(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder

    def write_python(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        md5 = {}
        for name, part in (("one", slice(0, 5)), ("two", slice(5, 10)), ("test", slice(10, 14))):
            content = {b"data": self.pixels[part], self.spec.label_key.encode(): self.labels[part].tolist()}
            (folder / name).write_bytes(pickle.dumps(content, protocol=3))
            md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        self.spec = replace(self.spec, python_md5=md5)
        return folder


@pytest.fixture
def mini() -> MiniCifar:
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1], dtype=np.uint8)
    pixels = random.integers(0, 256, (14, 3072), dtype=np.uint8)
    coarse = np.full(14, 9, dtype=np.uint8)  # out of range, so that reading it as the label fails
    records = np.column_stack([coarse, labels, pixels])
    files = {"one.bin": records[:5].tobytes(), "two.bin": records[5:10].tobytes(), "test.bin": records[10:].tobytes()}
    spec = CifarSpec(
        name="mini",
        classes=("a", "b", "c"),
        url="http://127.0.0.1:9/mini.tar.gz",
        md5="",
        binary=Layout("mini-bin", TRAIN, TEST),
        label_bytes=2,
        python=Layout("mini-py", {"one": 5, "two": 5}, {"test": 4}),
        label_key="fine_labels",
        python_md5={},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return MiniCifar(spec, files, labels, pixels)
