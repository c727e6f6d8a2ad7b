"""Weights on disk: NAME.safetensors beside NAME.json with the configuration, the card and the tensors' sha256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from ..errors import CheckpointError, ModelError
from .config import ModelConfig

FORMAT = 1
STORED_DTYPES = ("float32", "float16", "int8")
_SCALE = ".scale"
_SMALL = 10_000


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], *, meta: Mapping[str, Any], dtype: str = "float32"
) -> None:
    """Write PATH.safetensors and PATH.json. `meta` is the card: model name, data, metrics, recipe.

    Raises `CheckpointError`, with the files of before still in place, if they cannot be written.
    dtype "float16" stores tensors of two or more dimensions in half precision, "int8" those of 10,000 or more elements
    in 8 bits with a scale for each output channel (the smaller in half precision); vectors and BatchNorm stay float32.
    """
    path = Path(path)
    config: ModelConfig = model.config  # pyright: ignore[reportAssignmentType]
    tensors = {k: t for name, v in model.state_dict().items() for k, t in _stored(name, v, dtype).items()}
    payload = dump_tensors(tensors)
    card = {
        "format": FORMAT,
        **meta,
        "config": config.replace(time_steps=model.time_steps).to_dict(),
        "stored_dtype": dtype,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    text = json.dumps(card, indent=1, ensure_ascii=False, default=str) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_together({_with_suffix(path, ".safetensors"): payload, _with_suffix(path, ".json"): text.encode()})
    except OSError as error:
        raise CheckpointError(f"{path}.safetensors cannot be written: {error.strerror or error}") from error


def load_weights(path: str | os.PathLike[str], **overrides: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Model and card from PATH.safetensors + PATH.json; overrides change the configuration (`num_classes`: new head).

    Raises `CheckpointError` for a damaged or missing file, `ModelError` for weights of another geometry.
    """
    from .registry import build

    path = Path(path)
    card = read_card(path)
    try:
        config = ModelConfig.from_dict(card["config"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}.json has no usable model configuration: {error!r}") from error
    model = build(config.replace(**overrides))
    load_state(model, read_tensors(path, card), source=str(_with_suffix(path, ".safetensors")))
    return model, card


def read_card(path: Path) -> dict[str, Any]:
    """The JSON of a weights file."""
    file = _with_suffix(path, ".json")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: it belongs beside the weights") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not a weights card of format {FORMAT}")
    return card


def read_tensors(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a weights file, in float32, once its sha256 has been found equal to the card's."""
    file = _with_suffix(path, ".safetensors")
    try:
        payload = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(payload).hexdigest() != card.get("sha256"):
        raise CheckpointError(f"{file} is damaged: its sha256 is not the one in {_with_suffix(path, '.json').name}")
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    return {name: _restored(name, tensors) for name in tensors if not name.endswith(_SCALE)}


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `model`; a head for another number of classes is left as it was drawn."""
    own = model.state_dict()
    loaded = dict(tensors)
    head = [k for k in ("head.weight", "head.bias") if k in own and k in loaded and own[k].shape != loaded[k].shape]
    for name in head:
        loaded[name] = own[name]
    for name in sorted(own.keys() | loaded.keys()):
        here, there = own.get(name), loaded.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = " and ".join("absent" if t is None else str(tuple(t.shape)) for t in (here, there))
            raise ModelError(f"{source} is for another geometry: {name} differs (model and file: {shapes})")
    model.load_state_dict(loaded)


def _stored(name: str, tensor: Tensor, dtype: str) -> dict[str, Tensor]:
    tensor = tensor.detach().contiguous()
    if dtype not in STORED_DTYPES:
        raise ModelError(f"weights cannot be stored as {dtype!r}: use one of {', '.join(STORED_DTYPES)}")
    if dtype == "float32" or tensor.ndim < 2 or not tensor.is_floating_point():
        return {name: tensor.cpu()}
    if dtype == "float16" or tensor.numel() < _SMALL:
        return {name: tensor.to(torch.float16).cpu()}
    rows = tensor.flatten(1).float()
    scale = best_scale(rows)  # thousands of small operations, on the model's own device
    levels = (rows / scale[:, None]).round().clamp(-127, 127)
    return {name: levels.to(torch.int8).view_as(tensor).cpu(), name + _SCALE: scale.cpu()}


def best_scale(rows: Tensor) -> Tensor:
    """The step of 8-bit levels for each row: of shares of the largest weight / 127 the one with the least error."""
    largest = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in range(50, 101, 2):
        scale = share / 100 * largest
        error = (rows / scale).round_().clamp_(-127, 127).mul_(scale).sub_(rows).square_().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.view(-1)


def _restored(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    tensor, scale = tensors[name], tensors.get(name + _SCALE)
    if scale is not None:
        return tensor * scale.view(-1, *(1,) * (tensor.ndim - 1))
    return tensor.float() if tensor.is_floating_point() else tensor


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)  # not with_suffix: "name.tag" has a dot of its own


def _write_together(files: Mapping[Path, bytes]) -> None:
    """Replace all files once every one is on the disk, so that tensors never stay behind with an older card."""
    temporary = {file: file.with_name(file.name + ".tmp") for file in files}
    try:
        for file, payload in files.items():
            with temporary[file].open("wb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
        for file in files:
            os.replace(temporary[file], file)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
