"""A model as data: what `create_model` builds and what a weights file stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from torch import nn

from ..errors import InputError, ModelError
from ..neurons import LIF, PLIF
from ..ops.stdp import StdpWindow

NEURONS = {"lif": LIF, "plif": PLIF}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Geometry and constants of a spiking Transformer (family "spiking") or its ANN twin ("ann").

    `stem_pool[i]`: a max-pool (3, stride 2) before the stem's convolution i. `gain`: scale of eq. 23 is gain / N.
    """

    family: str = "spiking"
    num_classes: int = 10
    in_channels: int = 3
    time_steps: int = 4
    embed_dim: int = 384
    depth: int = 4
    num_heads: int = 12
    mlp_ratio: int = 4
    stem_channels: tuple[int, ...] = (48, 96, 192, 384)
    stem_pool: tuple[bool, ...] = (False, False, False, True, True)
    attention: str = "stdp"
    window: StdpWindow = field(default_factory=StdpWindow)
    gain: float = 8.0
    neuron: str = "lif"
    tau: float = 2.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    surrogate: str = "sigmoid"
    detach_reset: bool = True

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "time_steps", "embed_dim", "depth", "num_heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ModelError(f"model option {name} must be at least 1, got {getattr(self, name)}")
        if min(self.stem_channels, default=1) < 1:
            raise ModelError(f"model option stem_channels must be at least 1 each, got {self.stem_channels}")
        if len(self.stem_pool) != len(self.stem_channels) + 1 or self.stem_pool[0]:
            raise ModelError("model option stem_pool needs one flag a convolution, the first False")
        if self.family not in ("spiking", "ann"):
            raise ModelError(f"model option family {self.family!r} is unknown: use spiking or ann")
        if self.neuron not in NEURONS:
            raise ModelError(f"model option neuron {self.neuron!r} is unknown: use one of {', '.join(NEURONS)}")
        if self.embed_dim % self.num_heads:
            raise ModelError(f"model option embed_dim {self.embed_dim} does not divide into {self.num_heads} heads")

    def make_neuron(self, **overrides: object) -> nn.Module:
        """A spiking neuron with this model's constants; a ReLU in the ANN twin."""
        if self.family == "ann":
            return nn.ReLU()
        options = {
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "surrogate": self.surrogate,
            "detach_reset": self.detach_reset,
        }
        return partial(NEURONS[self.neuron], self.tau)(**(options | overrides))

    def replace(self, **changes: Any) -> ModelConfig:
        """A changed copy; an unknown option is refused by name."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise ModelError(f"model option {name!r} is unknown: use one of {', '.join(known)}")
        return replace(self, **{k: _typed(k, v) for k, v in changes.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        return cls().replace(**values)


def _typed(name: str, value: Any) -> Any:
    if name == "window" and isinstance(value, Mapping):
        known = [f.name for f in fields(StdpWindow)]
        for key in value:
            if key not in known:
                raise ModelError(f"model option window.{key} is unknown: use one of {', '.join(known)}")
        try:
            return StdpWindow(**value)
        except InputError as error:
            raise ModelError(str(error)) from error
    default = getattr(ModelConfig(), name)
    expected = type(default)
    if expected is tuple and isinstance(value, (list, tuple)):
        member = type(default[0])
        if not all(type(item) is member for item in value):
            raise ModelError(f"model option {name} must be a list of {member.__name__}, got {value!r}")
        return tuple(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) and not (name == "v_reset" and value is None):
        raise ModelError(f"model option {name} must be {expected.__name__}, got {value!r}")
    return value
