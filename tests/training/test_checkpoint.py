"""Checkpoints survive damage, a full disk and a crash between any two writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from s2tdpt.errors import CheckpointError
from s2tdpt.training import checkpoint


def make_state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, 3, 3, generator=generator)
    return {
        "model": {"conv.weight": weight.contiguous(memory_format=torch.channels_last), "count": torch.tensor(7 + seed)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(5, generator=generator)}},
            "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.95), "params": [0], "foreach": None}],
        },
        "half": [torch.randn(3, generator=generator).bfloat16(), torch.randn(3, generator=generator).half()],
        "ints": torch.arange(4, dtype=torch.int8).view(2, 2).t(),
        "empty": torch.empty(0, 3),
    }


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def latest(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(folder)
    assert found is not None
    return found


def save_two(folder: Path) -> list[Path]:
    """Two checkpoints; the tensor files of the first and of the second."""
    files: list[Path] = []
    for step in (1, 2):
        checkpoint.save(folder, make_state(step), {"step": step, "history": [{"loss": 0.1}]})
        files += [path for path in folder.glob("*.safetensors") if path not in files]
    return files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_keeps_types_values_and_strides(tmp_path: Path) -> None:
    state = make_state()
    path = checkpoint.save(tmp_path / "checkpoint", state, {"step": 5, "elapsed": 1 / 3, "history": []})
    found = latest(tmp_path / "checkpoint")
    assert_same(found.state, state)
    assert found.meta == {"step": 5, "elapsed": 1 / 3, "history": []}
    assert found.path == path
    assert found.state["model"]["conv.weight"].stride() == state["model"]["conv.weight"].stride()


def test_a_dotted_key_and_a_path_of_the_same_name_do_not_collide(tmp_path: Path) -> None:
    state = {"a.b": torch.zeros(2), "a": {"b": torch.ones(2)}}
    checkpoint.save(tmp_path, state, {"step": 0})
    assert_same(latest(tmp_path).state, state)


def test_shared_and_sliced_tensors_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    checkpoint.save(tmp_path, {"base": base, "view": base[::2]}, {"step": 0})
    assert_same(latest(tmp_path).state, {"base": base, "view": base[::2].clone()})


def test_what_json_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot hold extra\.thing: object"):
        checkpoint.save(tmp_path, {"extra": {"thing": object()}}, {"step": 0})


def test_nothing_saved_yet_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "absent") is None


def test_two_checkpoints_are_kept_and_no_litter(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save(tmp_path, make_state(step), {"step": step})
    tensors = [name for name in names(tmp_path) if name.endswith(".safetensors")]
    assert names(tmp_path) == sorted([*tensors, "checkpoint.json", "previous.json"])
    assert [int(name[5:13]) for name in tensors] == [3, 4]
    assert latest(tmp_path).meta["step"] == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
@pytest.mark.parametrize("target", ["tensors", "json"])
def test_damage_falls_back_to_the_previous_and_says_so(tmp_path: Path, damage: str, target: str) -> None:
    files = save_two(tmp_path)
    path = files[1] if target == "tensors" else tmp_path / "checkpoint.json"
    harm(path, damage)
    if target == "json" and damage == "delete":  # nothing is wrong then: the previous one is the newest
        assert latest(tmp_path).meta["step"] == 1
        return
    with pytest.warns(UserWarning, match=rf"{path.name}.*going back to the previous checkpoint, step 1"):
        found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.meta["step"] == 1
    assert_same(found.state, make_state(1))


def harm(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncate" else 0])


def test_every_flipped_bit_of_the_json_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": 12, "elapsed": 3.5})
    path = tmp_path / "checkpoint.json"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 2]) + content[position + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load_latest(tmp_path)


def test_both_damaged_is_an_error_that_names_both(tmp_path: Path) -> None:
    for path in save_two(tmp_path):
        harm(path, "flip")
    with pytest.raises(CheckpointError, match=r"can be trusted.*step-00000002.*step-00000001"):
        checkpoint.load_latest(tmp_path)


@pytest.mark.parametrize("target", ["tensors", "json"])
def test_saving_after_damage_keeps_the_good_previous_one(tmp_path: Path, target: str) -> None:
    files = save_two(tmp_path)
    harm(files[1] if target == "tensors" else tmp_path / "checkpoint.json", "flip")
    checkpoint.save(tmp_path, make_state(3), {"step": 3})
    harm(next(tmp_path.glob("step-00000003*")), "flip")
    with pytest.warns(UserWarning, match="step 1"):
        assert latest(tmp_path).meta["step"] == 1


class Died(BaseException):
    """Stands for the end of the process."""


def test_a_crash_between_any_two_system_calls_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies at the n-th fsync or rename of the third save, for every n: step 2 or step 3 is there, never less."""
    seen: set[int] = set()
    for deadline in range(100):
        folder = tmp_path / str(deadline)
        save_two(folder)
        calls = 0

        def dying(real: Any, deadline: int = deadline) -> Any:
            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > deadline:
                    raise Died
                return real(*arguments)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", dying(os.fsync))
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(checkpoint, "_sweep", lambda folder: None)  # a dead process tidies nothing up
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
            try:
                checkpoint.save(folder, make_state(3), {"step": 3})
            except Died:
                finished = False
            else:
                finished = True
        found = latest(folder)
        seen.add(found.meta["step"])
        assert_same(found.state, make_state(found.meta["step"]))
        checkpoint.save(folder, make_state(4), {"step": 4})
        assert len(names(folder)) == 4  # two JSON files, two of tensors: the dead one's litter is gone
        if finished:
            break
    assert finished
    assert seen == {2, 3}


FULL_DISK = """
import resource, sys, warnings
from pathlib import Path
import torch
from s2tdpt.errors import CheckpointError
from s2tdpt.training import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, {"x": torch.ones(10)}, {"step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    checkpoint.save(folder, {"x": torch.arange(5000.0)}, {"step": 2, "long": "." * int(sys.argv[3])})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "long"), [(4096, 0), (30_000, 40_000)], ids=["tensors", "json"])
def test_a_full_disk_is_one_clear_line_and_costs_nothing(tmp_path: Path, limit: int, long: int) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "full"), str(limit), str(long)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "cannot write a checkpoint of 0.0 MB" in result.stdout
    assert "free some space" in result.stdout
    found = latest(tmp_path / "full")
    assert found.meta["step"] == 1
    assert torch.equal(found.state["x"], torch.ones(10))
    assert not list((tmp_path / "full").glob("*.tmp"))
    assert len(list((tmp_path / "full").glob("*.safetensors"))) == 1


def test_a_file_in_the_way_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Not a directory|File exists"):
        checkpoint.save(tmp_path / "file", {"x": torch.zeros(1)}, {"step": 0})


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    checkpoint.write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["metrics.json"]
