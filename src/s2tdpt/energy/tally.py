"""Sums while a model runs: what a product of two tensors costs, gathered by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .operands import Operand
from .origins import Origin
from .products import Product
from .report import Counts, Edge, LayerCount

_KINDS = ("binary", "ternary", "integer", "float")


@dataclass(frozen=True, eq=False)
class Side:
    """One factor of a product, by its role; a weight has no `operand`, what is never stored no `tensor`."""

    role: str
    operand: Operand | None = None
    tensor: Tensor | None = None
    origin: Origin = Origin.CONSTANT


def price(sides: Sequence[Side]) -> tuple[str, float]:
    """The field of `Counts` that a product of these factors falls under, and the density that weighs its MACs."""
    operands = [side.operand for side in sides if side.operand is not None]
    for unit, kinds in (("sops", ("binary", "ternary")), ("integer_macs", ("integer",))):
        densities = [operand.density for operand in operands if operand.kind in kinds]
        if densities:
            return unit, min(densities)
    return "macs", 1.0


def count_events(product: Product, sides: Sequence[Side]) -> int:
    """The same product counted event by event: no padding, and no zeros unless it multiplies real numbers."""
    if price(sides)[0] == "macs":
        return product.events(None, None)
    left, right = (None if side.operand is None else side.tensor for side in sides)
    return product.events(left, right)


@dataclass
class _SideTally:
    role: str
    weight: bool = True
    kind: str = "binary"
    origin: Origin = Origin.CONSTANT
    macs: float = 0.0
    weighed: float = 0.0  # density x MACs
    multiplies: bool = False

    def add(self, side: Side, macs: float, multiplies: bool) -> None:
        if side.operand is None:
            return
        self.role, self.weight = side.role, False
        if side.operand.kind == "binary":
            return
        self.kind = max(self.kind, side.operand.kind, key=_KINDS.index)
        self.origin = max(self.origin, side.origin)
        self.macs += macs
        self.weighed += side.operand.density * macs
        self.multiplies |= multiplies

    def what(self, spiking: bool) -> str:
        if self.weight:
            return self.role
        if self.origin is Origin.PIXELS:
            return "pixels"
        return "membrane" if self.kind == "float" and self.origin is Origin.MEMBRANE and spiking else self.kind


@dataclass
class LayerTally:
    """One row of the report in the making: `add` once a call."""

    name: str
    op: str
    calls: int = 0
    nominal: float = 0.0
    spiking: float = 0.0
    weighed: float = 0.0  # density x MACs
    done: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    exact: defaultdict[str, float] | None = None
    sides: list[_SideTally] = field(default_factory=list)
    pixels: Tensor | None = None
    """What the last call saw of the model's input."""

    def add(self, macs: float, sides: Sequence[Side], watched: Sequence[Side] = ()) -> str:
        """A product of `sides`; `watched` are tensors that only steer it. Returns the field of `Counts` it adds to."""
        unit, density = price(sides)
        self.calls += 1
        self.nominal += macs
        self.done[unit] += density * macs
        if unit == "sops":
            self.spiking += macs
        inputs = [side.operand.density for side in sides if side.operand is not None]
        self.weighed += (min(inputs) if unit == "macs" else density) * macs
        everything = (*sides, *watched)
        if not self.sides:
            self.sides = [_SideTally(side.role) for side in everything]
        for tally, side in zip(self.sides, everything, strict=True):
            tally.add(side, macs, unit != "sops" and side in sides)
        return unit

    def add_exact(self, unit: str, events: float) -> None:
        self.exact = defaultdict(float) if self.exact is None else self.exact
        self.exact[unit] += events

    def layer(self, images: int, spiking: bool) -> LayerCount:
        """The row, per image; `spiking` says whether the model has neurons."""
        left, right, *_ = (side.what(spiking) for side in self.sides)
        return LayerCount(
            name=self.name,
            op=self.op,
            operands=(left, right),
            calls=self.calls,
            nominal_macs=self.nominal / images,
            spiking_macs=self.spiking / images,
            rate=self.weighed / self.nominal if self.nominal else 0.0,
            counts=Counts(**self.done) / images,
            exact=None if self.exact is None else Counts(**self.exact) / images,
        )

    def edges(self, images: int, spiking: bool) -> Iterator[Edge]:
        """Its factors that were not binary."""
        for side in self.sides:
            if side.kind != "binary":
                yield Edge(
                    name=self.name,
                    op=self.op,
                    operand=side.role,
                    what=side.what(spiking),
                    density=side.weighed / side.macs if side.macs else 0.0,
                    nominal_macs=side.macs / images,
                    multiplies=side.multiplies,
                )
