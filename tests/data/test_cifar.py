"""Both layouts of CIFAR, their damage, and the real images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from s2tdpt.data import load
from s2tdpt.data.cifar import load_cifar
from s2tdpt.data.cifar_spec import CIFAR10, CIFAR100
from s2tdpt.data.sets import channel_statistics
from s2tdpt.errors import DataError


def check_train(data, mini) -> None:
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (10, 3, 32, 32)
    assert np.array_equal(data.images.reshape(10, -1).numpy(), mini.pixels[:10])
    assert data.labels.tolist() == mini.labels[:10].tolist()
    assert data.labels.dtype == torch.int64
    assert data.classes == ["a", "b", "c"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("layout", ["binary", "python"])
def test_both_layouts_beside_or_as_the_root(mini, tmp_path: Path, layout: str, inside: bool):
    folder = getattr(mini, f"write_{layout}")(tmp_path / getattr(mini.spec, layout).folder)
    check_train(load_cifar(mini.spec, "train", folder if inside else tmp_path, download=False), mini)


def test_the_public_archive_in_the_root_is_unpacked(mini, tmp_path: Path):
    mini.write_archive(tmp_path / "mini.tar.gz")
    check_train(load_cifar(mini.spec, "train", tmp_path, download=False), mini)
    assert (tmp_path / "mini-bin" / "test.bin").is_file()


def test_a_file_of_the_wrong_size_is_named(mini, tmp_path: Path):
    file = mini.write_binary(tmp_path / "mini-bin") / "two.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"two\.bin has 15,369 bytes instead of 15,370 \(5 images\)"):
        load_cifar(mini.spec, "train", tmp_path)


@pytest.mark.parametrize(("layout", "name"), [("binary", "two.bin"), ("python", "two")])
def test_a_missing_file_is_named(mini, tmp_path: Path, layout: str, name: str):
    folder = getattr(mini, f"write_{layout}")(tmp_path / getattr(mini.spec, layout).folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        load_cifar(mini.spec, "train", tmp_path)


def test_a_label_out_of_range_is_refused(mini, tmp_path: Path):
    mini.files["one.bin"] = b"\0\3" + mini.files["one.bin"][2:]
    mini.write_binary(tmp_path / "mini-bin")
    with pytest.raises(DataError, match="3 classes but a label is 3"):
        load_cifar(mini.spec, "train", tmp_path)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_calls_nothing(mini, tmp_path: Path):
    folder = mini.write_python(tmp_path / "mini-py")
    trace = tmp_path / "pwned"
    (folder / "one").write_bytes(pickle.dumps({b"data": Attack(trace), b"fine_labels": []}))
    assert pickle.loads((folder / "one").read_bytes())
    assert trace.exists(), "the attack itself must work"
    trace.unlink()
    with pytest.warns(UserWarning, match="other md5"), pytest.raises(DataError, match="not a plain pickle"):
        load_cifar(mini.spec, "train", tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_unpublished_but_sound_pickle_is_read_with_a_warning(mini, tmp_path: Path, protocol: int):
    folder = mini.write_python(tmp_path / "mini-py")
    content = {"data": mini.pixels[:5], "fine_labels": mini.labels[:5].tolist()}
    plain = pickle.dumps(content, protocol=protocol)
    if protocol == 0:
        # Protocols below 3 spell bytes through _codecs.encode, which is not needed by any published file.
        assert b"_codecs" in plain
        (folder / "one").write_bytes(plain)
        with pytest.warns(UserWarning, match="other md5"), pytest.raises(DataError, match="_codecs"):
            load_cifar(mini.spec, "train", tmp_path)
        return
    (folder / "one").write_bytes(plain if protocol == 4 else python2_pickle(content))
    with pytest.warns(UserWarning, match="other md5"):
        check_train(load_cifar(mini.spec, "train", tmp_path), mini)


def python2_pickle(content: dict) -> bytes:
    """What Python 2 and an old numpy wrote, as in the published files: byte strings and numpy.core."""
    rows = content["data"]

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = (
        b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
        + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    )  # fmt: skip
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR("
        + number(1) + b"(" + number(rows.shape[0]) + number(rows.shape[1]) + b"t" + dtype
        + b"\x89" + text(rows.tobytes()) + b"tb"
    )  # fmt: skip
    labels = b"](" + b"".join(number(label) for label in content["fine_labels"]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"fine_labels") + labels + b"u."


@pytest.mark.parametrize("content", [{b"data": 3, b"fine_labels": [0] * 5}, [1, 2], {}, {b"fine_labels": ["x"] * 5}])
def test_a_pickle_of_something_else_is_refused(mini, tmp_path: Path, content: object):
    folder = mini.write_python(tmp_path / "mini-py")
    (folder / "one").write_bytes(pickle.dumps(content))
    with pytest.warns(UserWarning, match="other md5"), pytest.raises(DataError, match="one does not hold 5 images"):
        load_cifar(mini.spec, "train", tmp_path)


def test_a_truncated_pickle_is_refused(mini, tmp_path: Path):
    file = mini.write_python(tmp_path / "mini-py") / "one"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="other md5"), pytest.raises(DataError, match="not a plain pickle"):
        load_cifar(mini.spec, "train", tmp_path)


@pytest.mark.parametrize("spec", [CIFAR10, CIFAR100], ids=lambda spec: spec.name)
def test_the_real_images(spec, cifar_root: Path):
    train = load(spec.name, "train", root=cifar_root, download=False)
    test = load(spec.name, "test", root=cifar_root, download=False)
    assert (len(train), len(test)) == (50_000, 10_000)
    assert torch.bincount(train.labels).tolist() == [50_000 // len(spec.classes)] * len(spec.classes)
    assert torch.bincount(test.labels).tolist() == [10_000 // len(spec.classes)] * len(spec.classes)
    mean, std = channel_statistics(train.images)
    assert [round(value, 4) for value in mean] == list(spec.mean)
    assert [round(value, 4) for value in std] == list(spec.std)
    names = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}[spec.name]
    published = cifar_root / spec.binary.folder / names
    assert train.classes == published.read_text().split()


@pytest.mark.parametrize(("name", "split"), [("imagenet", "train"), ("cifar10", "valid")])
def test_unknown_names_are_refused(name: str, split: str):
    with pytest.raises(DataError, match="unknown"):
        load(name, split)
