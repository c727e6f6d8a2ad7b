"""A model as data: what `create_model` builds and what a weights file stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Any, get_args, get_type_hints

from torch import nn

from ..errors import InputError, ModelError
from ..neurons import LIF, PLIF
from ..ops.stdp import StdpWindow

NEURONS = {"lif": LIF, "plif": PLIF}
MIXERS = ("none", "dwconv", "conv")
"""What mixes neighbouring tokens before a block's MLP or attention: nothing, or a 3x3 convolution of spikes."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Geometry and constants of a spiking Transformer (family "spiking") or its ANN twin ("ann").

    `stem_pool[i]`: a max-pool (3, stride 2) before the stem's convolution i. `gain`: scale of eq. 23 is gain / N.
    `stage_*`: width, number of blocks and mixer of each stage before the `depth` blocks with attention, on a grid twice
    as fine as the next one's; `mixer` is that of the blocks with attention. See `MIXERS`.
    `pool_gradient`: that of a maximum of spikes goes to their "first", or to the neuron with the "largest" charge.
    `qk_norm`, of the twin alone: normalised queries and keys, without which Muon drives softmax scores without bound.
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
    stage_widths: tuple[int, ...] = ()
    stage_depths: tuple[int, ...] = ()
    stage_mixers: tuple[str, ...] = ()
    mixer: str = "none"
    pool_gradient: str = "first"
    qk_norm: bool = False
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
        if not len(self.stage_widths) == len(self.stage_depths) == len(self.stage_mixers):
            raise ModelError("model options stage_widths, stage_depths and stage_mixers need one entry a stage each")
        if min(self.stage_widths, default=1) < 1 or min(self.stage_depths, default=0) < 0:
            raise ModelError("model options stage_widths must be at least 1 each, stage_depths at least 0")
        for mixer in (self.mixer, *self.stage_mixers):
            if mixer not in MIXERS:
                raise ModelError(f"model option mixer {mixer!r} is unknown: use one of {', '.join(MIXERS)}")
        if self.family not in ("spiking", "ann"):
            raise ModelError(f"model option family {self.family!r} is unknown: use spiking or ann")
        if self.pool_gradient not in ("first", "largest"):
            raise ModelError(f"model option pool_gradient {self.pool_gradient!r} is unknown: use first or largest")
        if self.qk_norm and self.family != "ann":
            raise ModelError("model option qk_norm is for the ANN twin: spike counts are bounded already")
        if self.neuron not in NEURONS:
            raise ModelError(f"model option neuron {self.neuron!r} is unknown: use one of {', '.join(NEURONS)}")
        if self.embed_dim % self.num_heads:
            raise ModelError(f"model option embed_dim {self.embed_dim} does not divide into {self.num_heads} heads")

    @property
    def stem_width(self) -> int:
        """Channels that the stem's convolutions end with."""
        return self.stage_widths[0] if self.stage_widths else self.embed_dim

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
    expected = type(getattr(ModelConfig(), name))
    if expected is tuple and isinstance(value, (list, tuple)):
        member = get_args(_hints()[name])[0]
        if not all(type(item) is member for item in value):
            raise ModelError(f"model option {name} must be a list of {member.__name__}, got {value!r}")
        return tuple(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) and not (name == "v_reset" and value is None):
        raise ModelError(f"model option {name} must be {expected.__name__}, got {value!r}")
    return value


@lru_cache(maxsize=1)
def _hints() -> dict[str, Any]:
    return get_type_hints(ModelConfig)
