"""Weights on disk: what is saved comes back, and what was damaged, foreign or half-written never does."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from s2tdpt import create_model
from s2tdpt.errors import CheckpointError, ModelError, S2tdptError
from s2tdpt.models import load_weights, save_weights

from .cases import SMALL, images, small

META = {"model": "s2tdpt_tiny", "data": {"name": "digits", "classes": ["0", "1"]}, "metrics": {"top1": 0.97}}


@pytest.fixture(scope="module")
def once() -> nn.Module:
    return small().float()


@pytest.fixture
def model(once: nn.Module) -> nn.Module:
    return copy.deepcopy(once)


@pytest.fixture
def saved(tmp_path: Path, model: nn.Module) -> Path:
    save_weights(model, tmp_path / "run" / "s2tdpt_tiny.digits", meta=META)
    return tmp_path / "run" / "s2tdpt_tiny.digits"


def tensors_of(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


def card_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


@pytest.mark.parametrize("name", ["s2tdpt_tiny", "vit_tiny"])
@pytest.mark.parametrize("options", [{}, {"neuron": "plif"}, {"attention": "random"}, {"v_reset": None}])
def test_a_round_trip_is_bit_exact(tmp_path: Path, name: str, options: dict) -> None:
    model = small(name, **options).float()
    save_weights(model, tmp_path / "model", meta=META)
    loaded, card = load_weights(tmp_path / "model")
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype, key
        assert torch.equal(after[key], tensor), key
    assert loaded.config == model.config
    assert type(loaded) is type(model)
    assert {k: card[k] for k in META} == META
    x = images(2, 3, 8, 8).float()
    assert torch.equal(loaded.eval()(x), model(x))


def test_the_pair_of_files_is_all_there_is(saved: Path) -> None:
    assert sorted(f.name for f in saved.parent.iterdir()) == [
        "s2tdpt_tiny.digits.json",
        "s2tdpt_tiny.digits.safetensors",
    ]
    card = json.loads(card_of(saved).read_text())
    assert card["sha256"] == hashlib.sha256(tensors_of(saved).read_bytes()).hexdigest()
    assert card["format"] == 1


def test_half_precision_storage_keeps_vectors_whole(tmp_path: Path, model: nn.Module) -> None:
    save_weights(model, tmp_path / "half", meta=META, dtype="float16")
    save_weights(model, tmp_path / "full", meta=META)
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, tensor in model.state_dict().items():
        halved = tensor.ndim >= 2
        assert stored[key].dtype == (torch.float16 if halved else tensor.dtype), key
        assert torch.equal(stored[key], tensor.half() if halved else tensor), key
    assert any(key.endswith("running_var") for key in stored)
    loaded, _ = load_weights(tmp_path / "half")
    assert all(t.dtype == torch.float32 for k, t in loaded.state_dict().items() if "num_batches" not in k)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.75 * (tmp_path / "full.safetensors").stat().st_size


def test_the_present_number_of_time_steps_is_saved(tmp_path: Path, model: nn.Module) -> None:
    model.time_steps = 2
    save_weights(model, tmp_path / "model", meta=META)
    loaded, _ = load_weights(tmp_path / "model")
    assert loaded.time_steps == loaded.config.time_steps == 2
    x = images(2, 3, 8, 8).float()
    assert torch.equal(loaded.eval()(x), model(x))


def test_saving_again_replaces(saved: Path) -> None:
    other = small(depth=1).float()
    save_weights(other, saved, meta={"model": "other"})
    loaded, card = load_weights(saved)
    assert (loaded.config.depth, card["model"]) == (1, "other")
    assert len(list(saved.parent.iterdir())) == 2


def test_another_number_of_classes_gets_a_new_head(saved: Path, model: nn.Module) -> None:
    loaded, _ = load_weights(saved, num_classes=9)
    assert loaded.head.weight.shape == (9, 24)
    own, kept = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(kept[k], own[k]) for k in own if not k.startswith("head."))
    assert loaded.head.weight.std() > 0
    same, _ = load_weights(saved, num_classes=5)
    assert torch.equal(same.head.weight, model.head.weight)


def test_overrides_that_keep_the_geometry(saved: Path) -> None:
    loaded, _ = load_weights(saved, time_steps=1, gain=2.0)
    assert (loaded.time_steps, loaded.blocks[0].attn.gain) == (1, 2.0)
    with pytest.raises(ModelError, match="'depht' is unknown"):
        load_weights(saved, depht=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 1},
        {"depth": 3},
        {"embed_dim": 48},
        {"in_channels": 1},
        {"mlp_ratio": 2},
        {"stem_channels": (8, 16)},
        {"attention": "mean"},
        {"attention": "random"},
        {"neuron": "plif"},
        {"family": "ann", "time_steps": 1},
    ],
)
def test_another_geometry_names_the_first_tensor_that_differs(saved: Path, model: nn.Module, changes: dict) -> None:
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    wanted = {k: v.shape for k, v in create_model("s2tdpt_tiny", **(SMALL | changes)).state_dict().items()}
    first = min(k for k in shapes.keys() | wanted.keys() if shapes.get(k) != wanted.get(k))
    with pytest.raises(ModelError) as caught:
        load_weights(saved, **changes)
    message = str(caught.value)
    assert f"{tensors_of(saved)} is for another geometry: {first} differs" in message
    for shape in (wanted.get(first), shapes.get(first)):
        assert ("absent" if shape is None else str(tuple(shape))) in message
    assert "\n" not in message


def flip(position: float) -> Callable[[bytes], bytes]:
    def change(payload: bytes) -> bytes:
        at = int(position * (len(payload) - 1))
        return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        *map(flip, (0.0, 0.001, 0.3, 0.77, 1.0)),
        lambda b: b[:-1],
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b + b"\0",
    ],
)
def test_damaged_tensors_are_refused(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tensors_of(saved)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"s2tdpt_tiny.digits.safetensors is damaged: its sha256") as caught:
        load_weights(saved)
    assert "\n" not in str(caught.value)


def test_a_card_that_vouches_for_rubbish(saved: Path) -> None:
    tensors_of(saved).write_bytes(b"not tensors")
    card = json.loads(card_of(saved).read_text()) | {"sha256": hashlib.sha256(b"not tensors").hexdigest()}
    card_of(saved).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_weights(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 2}', "{}", '{"format": 1}', '{"format": 1, "config": [3]}']
)
def test_a_damaged_card_is_refused(saved: Path, text: str) -> None:
    card_of(saved).write_text(text)
    with pytest.raises(CheckpointError, match=r"s2tdpt_tiny.digits.json") as caught:
        load_weights(saved)
    assert "\n" not in str(caught.value)


def test_a_card_that_is_no_text(saved: Path) -> None:
    card_of(saved).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="json cannot be read"):
        load_weights(saved)


def test_a_card_with_a_key_from_the_future_names_it(saved: Path) -> None:
    card = json.loads(card_of(saved).read_text())
    card["config"]["rotary"] = True
    card_of(saved).write_text(json.dumps(card))
    with pytest.raises(S2tdptError, match="'rotary' is unknown"):
        load_weights(saved)


def test_a_missing_half_is_named(saved: Path) -> None:
    text = card_of(saved).read_text()
    card_of(saved).unlink()
    with pytest.raises(CheckpointError, match=r"digits.json is missing: it belongs beside the weights"):
        load_weights(saved)
    card_of(saved).write_text(text)
    tensors_of(saved).unlink()
    with pytest.raises(CheckpointError, match=r"digits.safetensors cannot be read: No such file"):
        load_weights(saved)


FULL_DISK = """
import resource, sys
from s2tdpt.errors import CheckpointError
from s2tdpt.models import load_weights, save_weights

path, limit, padding = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model, card = load_weights(path)
model.head.weight.data.zero_()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_weights(model, path, meta={"model": "new", "note": "x" * padding})
except CheckpointError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("fails", ["tensors", "card", "nothing"])
def test_a_full_disk_while_saving_loses_nothing(saved: Path, model: nn.Module, fails: str) -> None:
    size = tensors_of(saved).stat().st_size
    limit, padding = {"tensors": (size // 2, 0), "card": (size + 9, size + 9), "nothing": (size + 9, 0)}[fails]
    command = [sys.executable, "-c", FULL_DISK, str(saved), str(limit), str(padding)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sorted(f.name for f in saved.parent.iterdir()) == [card_of(saved).name, tensors_of(saved).name]
    loaded, card = load_weights(saved)
    if fails == "nothing":
        assert done.returncode == 0, done.stderr
        assert card["model"] == "new"
        return
    assert done.returncode == 2, done.stderr
    assert f"{saved}.safetensors cannot be written: File too large" in done.stdout
    assert card["model"] == "s2tdpt_tiny"
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_a_place_that_cannot_be_written(tmp_path: Path, model: nn.Module) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be written"):
        save_weights(model, tmp_path / "file" / "model", meta=META)


def test_eight_bits_err_no_more_than_plain_rounding_by_channel(tmp_path):
    model = create_model("s2tdpt_tiny", in_channels=1)
    save_weights(model, tmp_path / "m", meta={"model": "s2tdpt_tiny"}, dtype="int8")
    loaded, card = load_weights(tmp_path / "m")
    assert card["stored_dtype"] == "int8"
    eight_bits = 0
    for name, tensor in model.state_dict().items():
        other = loaded.state_dict()[name]
        if tensor.ndim >= 2 and tensor.numel() >= 10_000:
            eight_bits += 1
            rows, stored = tensor.flatten(1), other.flatten(1)
            step = rows.abs().amax(1, keepdim=True) / 127
            plain = (rows / step).round() * step
            assert ((rows - stored).square().sum(1) <= (rows - plain).square().sum(1) * 1.0001).all(), name
            assert (rows - stored).norm() < 0.02 * rows.norm(), name
        elif tensor.ndim >= 2:
            assert torch.equal(other, tensor.half().float()), name
        else:
            assert torch.equal(other, tensor), name
    assert eight_bits
    assert (tmp_path / "m.safetensors").stat().st_size < 0.4 * 4 * sum(p.numel() for p in model.parameters())


def test_an_unknown_storage_type_is_refused(tmp_path):
    with pytest.raises(ModelError, match="int8"):
        save_weights(create_model("s2tdpt_tiny"), tmp_path / "m", meta={}, dtype="int4")
