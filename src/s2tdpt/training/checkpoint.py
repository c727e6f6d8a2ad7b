"""Checkpoints: safetensors for tensors, JSON for the rest, one commit point, the previous one kept.

A checkpoint is `NAME.safetensors` (or, where it was cut up, `NAME.safetensors.0` and so on) and the small
`checkpoint.json` that names it with its SHA-256. The tensors are on disk under their final name before that JSON
replaces the one before, so a process that dies at any moment leaves a whole checkpoint. `previous.json` names the one
before it. Both JSON files carry a checksum of themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from s2tdpt.errors import CheckpointError

FORMAT = 1
LATEST, PREVIOUS = "checkpoint.json", "previous.json"
_TENSOR, _ITEMS, _TUPLE = "__tensor__", "__items__", "__tuple__"


@dataclass(frozen=True)
class Checkpoint:
    """`state`: what `save` was given (nested dicts, lists and tensors, on the CPU); `meta`: its JSON values."""

    state: dict[str, Any]
    meta: dict[str, Any]
    path: Path


def save(folder: Path, state: Mapping[str, Any], meta: Mapping[str, Any], *, piece: int | None = None) -> Path:
    """Write `state` (nested dicts, lists, tuples, tensors, numbers, strings) and `meta` (JSON), or change nothing.

    `meta["step"]` names the file; `piece` cuts it into files of so many bytes at most. Returns the JSON written last.
    Raises `CheckpointError`, with the checkpoint before still whole, when the disk is full or the folder cannot be
    written.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _split(dict(state), "", tensors)
    payload = tensors_to_bytes(tensors)
    digest = hashlib.sha256(payload).hexdigest()
    name = f"step-{int(meta['step']):08d}-{digest[:8]}.safetensors"
    files = {name: payload}
    if piece is not None:
        starts = range(0, len(payload), piece)
        files = {f"{name}.{n}": payload[start : start + piece] for n, start in enumerate(starts)}
    named = list(files) if piece is not None else name
    body = {"format": FORMAT, "tensors": named, "sha256": digest, "meta": dict(meta), "state": skeleton}
    text = json.dumps(body)
    document = json.dumps({"sha256": _digest(text), "body": text}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            write_atomic(folder / file, content)
        if _is_whole(folder / LATEST):  # else the previous one is the last that can be trusted: it stays
            write_atomic(folder / PREVIOUS, (folder / LATEST).read_bytes())
        write_atomic(folder / LATEST, document)
    except OSError as error:
        raise CheckpointError(
            f"cannot write a checkpoint of {len(payload) / 1e6:.1f} MB in {folder} ({error.strerror or error}): "
            "free some space or choose another folder; the checkpoint before it is untouched"
        ) from error
    finally:
        _sweep(folder)
    return folder / LATEST


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose checksums hold; None where none was ever committed.

    Falls back to the previous one with a warning that says so. Raises `CheckpointError` when neither can be trusted.
    """
    problems: list[str] = []
    for name in (LATEST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            checkpoint = _read(folder / name)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            step = checkpoint.meta.get("step")
            warnings.warn(f"{problems[0]}; going back to the previous checkpoint, step {step}", stacklevel=2)
        return checkpoint
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be trusted ({'; '.join(problems)}): start a new run")
    return None


def write_atomic(path: Path, content: bytes) -> None:
    """Write `path` whole or not at all, and have it on the disk on return. Raises OSError; leaves no litter."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must survive a power cut; other systems cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> Checkpoint:
    body, payload = _read_verified(path)
    # Copies: the loader's tensors are views into one buffer, with whatever alignment the file gives them.
    tensors = {name: tensor.clone() for name, tensor in tensors_from_bytes(payload).items()}
    return Checkpoint(_join(body["state"], tensors), body["meta"], path)


def _is_whole(path: Path) -> bool:
    try:
        _read_verified(path)
    except CheckpointError:
        return False
    return True


def _read_verified(path: Path) -> tuple[dict[str, Any], bytes]:
    body = _read_body(path)
    files = [path.parent / name for name in _files(body)]
    payload = b""
    for file in files:
        try:
            payload += file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    if hashlib.sha256(payload).hexdigest() != body["sha256"]:
        which = str(files[0]) if len(files) == 1 else f"one of {files[0]} and the pieces after it"
        raise CheckpointError(f"{which} is damaged (its checksum differs)")
    return body, payload


def _files(body: Mapping[str, Any]) -> list[str]:
    """Names of the files that hold the tensors: one, or its pieces in order."""
    return [body["tensors"]] if isinstance(body["tensors"], str) else body["tensors"]


def _read_body(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        text = document["body"]
        whole = _digest(text) == document["sha256"]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged (not a checkpoint's JSON)") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged (its checksum differs)")
    body = json.loads(text)
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}, this version reads {FORMAT}")
    return body


def _sweep(folder: Path) -> None:
    """Remove what no JSON names: older tensors, and what a killed process left behind."""
    stale = set(folder.glob("*.tmp"))
    try:
        bodies = [_read_body(folder / name) for name in (LATEST, PREVIOUS) if (folder / name).exists()]
        named = {name for body in bodies for name in _files(body)}
        stale |= {path for path in folder.glob("*.safetensors*") if path.name not in named}
    except CheckpointError:
        pass  # a JSON that cannot be read may name any of them
    for path in stale:
        with contextlib.suppress(OSError):
            path.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under dotted names (int keys and tuples are kept apart)."""
    if isinstance(value, Tensor):
        while name in tensors:  # "a.b" may be a key as well as a path
            name += "'"
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        strided = value.dim() == 4 and not value.is_contiguous()
        return {_TENSOR: name, "channels_last": strided and value.is_contiguous(memory_format=torch.channels_last)}
    if isinstance(value, Mapping):
        items = [[key, _split(item, f"{name}.{key}" if name else str(key), tensors)] for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key in value) else {_ITEMS: items}
    if isinstance(value, (list, tuple)):
        items = [_split(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {name}: {type(value).__name__}")


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_split`."""
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        tensor = tensors[value[_TENSOR]]
        return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
    if _TUPLE in value:
        return tuple(_join(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {key: _join(item, tensors) for key, item in value[_ITEMS]}
    return {key: _join(item, tensors) for key, item in value.items()}
