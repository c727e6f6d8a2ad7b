"""Models by name: `create_model("s2tdpt_4_384")`, and with weights `create_model("name.tag", pretrained=True)`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelError
from .config import ModelConfig
from .transformer import SpikingTransformer
from .vit import VisionTransformer
from .weights import load_weights, read_card

_TINY: dict[str, Any] = {
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
    "stem_channels": (16, 32, 64),
    "stem_pool": (False, False, False, True),
}
_2_512: dict[str, Any] = {"embed_dim": 512, "depth": 2, "num_heads": 8, "stem_channels": (64, 128, 256, 512)}

_H_384: dict[str, Any] = {
    "depth": 3,
    "gain": 16.0,  # with 8 the neurons after attention begin at a tenth of the others' rates
    "mixer": "dwconv",
    "stem_channels": (48,),
    "stem_pool": (False, False),
    "stage_widths": (96, 192),
    "stage_depths": (1, 2),
    "stage_mixers": ("none", "dwconv"),
}

MODELS: dict[str, ModelConfig] = {
    "s2tdpt_4_384": ModelConfig(),
    "s2tdpt_2_512": ModelConfig(**_2_512),
    "s2tdpt_h_384": ModelConfig(**_H_384),
    "s2tdpt_tiny": ModelConfig(**_TINY),
    "vit_4_384": ModelConfig(family="ann", time_steps=1),
    "vit_h_384": ModelConfig(family="ann", time_steps=1, **_H_384),
    "vit_tiny": ModelConfig(family="ann", time_steps=1, **_TINY),
}


def create_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """The model called `name` ("s2tdpt_4_384") or `name.tag` ("s2tdpt_tiny.digits": geometry of those weights).

    `pretrained=True` loads the tag's weights, found offline; the model is then in evaluation mode. Options change the
    configuration: `num_classes` (with weights: a new head), `in_channels`, `time_steps`, `attention` ("stdp", "mean",
    "identity", "random"), `window`, `gain`, `neuron` ("lif", "plif") and the other fields of `ModelConfig`. Raises
    `ModelError` for unknown names.
    """
    options = {k: v for k, v in options.items() if v is not None or k == "v_reset"}
    base, _, tag = name.partition(".")
    if pretrained:
        if not tag:
            tags = [n for n in list_models(pretrained=True) if n.partition(".")[0] == base]
            hint = f"name its weights: {', '.join(tags)}" if tags else "no weights ship for it: train it first"
            raise ModelError(f"model {name!r} has no weights of its own: {hint}")
        return load_weights(_weights_path(name), **options)[0].eval()
    if tag:
        return build(ModelConfig.from_dict(read_card(_weights_path(name))["config"]).replace(**options))
    if name not in MODELS:
        raise ModelError(_unknown(name, MODELS))
    return build(MODELS[name].replace(**options))


def build(config: ModelConfig) -> nn.Module:
    """The untrained model of a configuration."""
    return VisionTransformer(config) if config.family == "ann" else SpikingTransformer(config)


def list_models(pretrained: bool = False) -> list[str]:
    """Names that `create_model` takes; with `pretrained`, only those that ship with weights ("name.tag")."""
    tagged = sorted({f.name.removesuffix(".safetensors") for d in _weights_dirs() for f in d.glob("*.safetensors")})
    return tagged if pretrained else [*MODELS, *tagged]


def load_model(
    spec: str | os.PathLike[str], *, device: str = "cpu", allow_untrained: bool = False, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Model in evaluation mode and its card, from a registry name, a run folder or a .safetensors file.

    A name without weights is refused unless `allow_untrained`; its card is then {"model": name}.
    """
    path, name = Path(spec), str(spec)
    if path.is_dir():
        if not (path / "model.json").exists():
            raise ModelError(f"{path} holds no model.json: it is no finished run (resume it, or name another folder)")
        model, card = load_weights(path / "model", **options)
    elif path.suffix == ".safetensors":
        model, card = load_weights(path.with_name(path.name.removesuffix(".safetensors")), **options)
    elif name in list_models(pretrained=True):
        model, card = load_weights(_weights_path(name), **options)
    elif name in MODELS and allow_untrained:
        model, card = create_model(name, **options), {"model": name}
    elif name in MODELS:
        raise ModelError(f"model {name!r} has no weights: use one of {_listed(list_models(True))}, or a run folder")
    elif path.parent != Path():
        raise ModelError(f"{name} is no folder of a run and no .safetensors file: train it first, or name another")
    else:
        raise ModelError(_unknown(name, list_models()))
    return model.to(device).eval(), card


def _weights_dirs() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "weights", package.parents[1] / "weights")  # an installed wheel; a checkout
    return [d for d in candidates if d.is_dir()]


def _weights_path(name: str) -> Path:
    for folder in _weights_dirs():
        if (folder / f"{name}.safetensors").exists():
            return folder / name
    raise ModelError(_unknown(name, list_models()))


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    base = name.partition(".")[0]
    of_base = [other for other in known if other.startswith(f"{base}.")]
    close = difflib.get_close_matches(name, of_base if base in MODELS else known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    if base in MODELS:
        there = f"there are {_listed(of_base)}; else" if of_base else "none do for this model:"
        return f"no weights ship as {name!r}: {hint}{there} train {base}, and name the run's folder"
    return f"model {name!r} is unknown: {hint}known are {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
