"""Products of weights and spikes: in floating point, or in 8-bit integers where the CPU multiplies those faster.

Spikes are 0 or 1, so an integer product rounds nothing but the weights: its sums are exact, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.weights import best_scale

_LARGEST_GROWTH = 2.0**64


@dataclass(frozen=True)
class Places:
    """What a convolution looks at: 3x3 places around each by default, with all channels together."""

    stride: int = 1
    padding: int = 1
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Module) -> Places:
        """Those of a square convolution; of a linear layer, which has none, the default."""
        if not isinstance(layer, nn.Conv2d):
            return cls()
        return cls(layer.stride[0], int(layer.padding[0]), layer.groups)

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Stride, padding, dilation and groups, as oneDNN's operators take them."""
        return [self.stride] * 2, [self.padding] * 2, [1, 1], self.groups


class Synapse(ABC):
    """Spikes [R, in] or [B, H, W, in] to currents [..., out]: W s + b."""

    @abstractmethod
    def __call__(self, spikes: Tensor) -> Tensor:
        """The current, a tensor of its own."""

    @abstractmethod
    def add_to(self, u: Tensor, spikes: Tensor) -> Tensor:
        """u + current, in u's memory where that is possible."""

    def growth(self, decay: float, steps: int) -> float:
        """By how much the unit grows at each step in which `charge` returns the membrane."""
        return 1.0

    def charge(self, spikes: Tensor, n: Tensor | None, decay: float, unit: float) -> Tensor:
        """decay · n + current (n None: at rest) in units of `unit`, which is growth**step. Overwrites n."""
        current = self(spikes)
        return current if n is None else current.add_(n, alpha=decay)


class FloatSynapse(Synapse):
    """A linear layer (weight [out, in]) or convolution (weight [out, in / groups, k, k]) in floating point."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, places: Places = Places()) -> None:
        self.convolves, self.places = weight.ndim == 4, places
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        if self.convolves:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, spikes: Tensor) -> Tensor:
        if not self.convolves:
            return F.linear(spikes, self.weight, self.bias)
        return _nhwc(F.conv2d(_nchw(spikes), self.weight, self.bias, *self.places.geometry))

    def add_to(self, u: Tensor, spikes: Tensor) -> Tensor:
        return u.add_(self(spikes))


class IntegerSynapse(Synapse):
    """The same with weights of 8 · planes bits, a scale for each output channel: exact sums of 8-bit products.

    Each further plane holds, 254 times finer, what the planes before it rounded off; a plane of zeros is left out.
    oneDNN adds a product to what its result already holds, which charges a membrane for nothing: but not to a fraction
    of it. So the unit of membranes grows by 1/decay at each step instead, and with it the scales.
    """

    def __init__(self, weight: Tensor, bias: Tensor, planes: int, places: Places = Places()) -> None:
        self.bias = bias.float()
        self.convolves, self.places = weight.ndim == 4, places
        self.levels: list[tuple[Tensor, Tensor]] = []
        rest = weight.double()
        for _ in range(planes):
            levels, scale = quantised(rest)
            self.levels.append((levels, scale))
            rest = rest - levels * scale.double().view(-1, *(1,) * (rest.ndim - 1))
            if rest.abs().amax() < 1e-6 * weight.abs().amax():
                break
        self.zero = torch.zeros(len(bias), dtype=torch.int32)
        self._packed: dict[tuple[int, ...], list[Tensor]] = {}
        self._scaled: dict[float, tuple[list[Tensor], Tensor]] = {}

    def __call__(self, spikes: Tensor) -> Tensor:
        return self._run(spikes, None, 1.0)

    def add_to(self, u: Tensor, spikes: Tensor) -> Tensor:
        return self._run(spikes, u, 1.0)

    def growth(self, decay: float, steps: int) -> float:
        grows = decay > 0 and decay ** (1 - steps) <= _LARGEST_GROWTH
        return 1 / decay if grows else 1.0

    def charge(self, spikes: Tensor, n: Tensor | None, decay: float, unit: float) -> Tensor:
        if n is not None and unit == 1.0 and decay != 1.0:  # too many steps for growing units, or tau = 1
            return super().charge(spikes, n, decay, unit)
        return self._run(spikes, n, unit)

    def _run(self, spikes: Tensor, onto: Tensor | None, unit: float) -> Tensor:
        if unit not in self._scaled:
            self._scaled[unit] = [scale * unit for _, scale in self.levels], self.bias * unit
        scales, bias = self._scaled[unit]
        product = partial(_convolve, self.places) if self.convolves else _multiply
        for packed, scale in zip(self._pack(spikes), scales, strict=True):
            onto = product(spikes, packed, scale, self.zero, bias, onto)
            bias = None
        assert onto is not None
        return onto

    def _pack(self, spikes: Tensor) -> list[Tensor]:
        """Weights in the layout that oneDNN wants; a convolution's depends on the shape of its input."""
        shape = tuple(spikes.shape) if self.convolves else ()
        if shape not in self._packed:
            if len(self._packed) >= 4:
                self._packed.pop(next(iter(self._packed)))
            self._packed[shape] = [
                _onednn().qconv_prepack(levels, scale, 1.0, 0, *self.places.geometry, _nchw(spikes).shape)
                if self.convolves
                else _onednn().qlinear_prepack(levels, None)
                for levels, scale in self.levels
            ]
        return self._packed[shape]


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels and float32 scales [out]; weights that were stored in 8 bits give those levels again."""
    rows = weight.flatten(1)
    scale = best_scale(rows.float())
    levels = (rows / scale[:, None]).round().clamp(-127, 127)
    return levels.to(torch.int8).view(weight.shape), scale


def _multiply(x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    given = x, 1.0, 0, w, scale, zero
    if onto is None:
        return _onednn().qlinear_pointwise(*given, bias, 1.0, 0, torch.float32, "none", [], "")
    output = 1.0, 0, torch.float32, 1.0, 0
    return _onednn().qlinear_pointwise.binary(*given, onto, bias, *output, "sum", 1.0, "none", [], "")


def _convolve(
    places: Places, x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None, onto: Tensor | None
) -> Tensor:
    given, geometry = (_nchw(x), 1.0, 0, w, scale, zero), places.geometry
    if onto is None:
        out = _onednn().qconv2d_pointwise(*given, bias, *geometry, 1.0, 0, torch.float32, "none", [], "")
    else:
        output = *geometry, 1.0, 0, torch.float32, 1.0, 0
        out = _onednn().qconv2d_pointwise.binary(*given, _nchw(onto), bias, *output, "sum", 1.0, None, [], None)
    return _nhwc(out)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _onednn() -> Any:
    return torch.ops.onednn


@lru_cache(maxsize=1)
def integer_obstacle() -> str | None:
    """Why 8-bit products are not to be had here, or None: the instructions, and the operators with right results."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "this CPU has no 8-bit dot products (AVX-512 VNNI)"
    try:
        wrong = _wrong_products()
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"this PyTorch's 8-bit products do not run: {str(error).splitlines()[0]}"
    return "this PyTorch's 8-bit products are wrong" if wrong else None


def _wrong_products() -> bool:
    """Whether small products and convolutions, fresh and added to a tensor, differ from those in floating point."""
    made = torch.Generator().manual_seed(0)

    def levels(*shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, generator=made).double()

    wrong = False
    for weight, shape, places in (
        (levels(32, 48), (24, 48), Places()),
        (levels(32, 16, 3, 3), (2, 8, 8, 16), Places()),
        (levels(32, 16, 2, 2), (2, 8, 8, 16), Places(stride=2, padding=0)),
        (levels(32, 1, 3, 3), (2, 8, 8, 32), Places(groups=32)),
    ):
        weight.view(32, -1)[:, 0] = 127  # so that 8 bits hold these weights
        spikes = torch.randint(0, 2, shape, generator=made, dtype=torch.uint8)
        bias = levels(32)
        truth = FloatSynapse(weight, bias, torch.float64, places)(spikes.double())
        synapse = IntegerSynapse(weight, bias, 1, places)
        for found in (synapse(spikes), synapse.add_to(torch.ones(truth.shape), spikes) - 1):
            wrong |= not torch.allclose(found.double(), truth, rtol=1e-4, atol=1e-2)
    return wrong
