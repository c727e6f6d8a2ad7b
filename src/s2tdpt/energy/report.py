"""What `count` hands back: operations of every layer, per image, and what they cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from typing import Any

from ..errors import InputError
from .rules import rules
from .tables import CostTable, cost_table
from .text import render


@dataclass(frozen=True)
class Counts:
    """Operations: `sops` are additions that a spike sets off, `macs` multiplications of real numbers."""

    sops: float = 0.0
    macs: float = 0.0
    integer_macs: float = 0.0
    table_reads: float = 0.0
    neuron_updates: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def __truediv__(self, images: int) -> Counts:
        return Counts(*(value / images for value in asdict(self).values()))

    def energy_mj(self, table: CostTable) -> float:
        picojoules = (
            self.sops * table.ac
            + self.macs * table.mac
            + self.integer_macs * table.integer_mac_pj
            + self.table_reads * table.table_read
            + self.neuron_updates * table.neuron_update
        )
        return picojoules * 1e-9


@dataclass(frozen=True)
class LayerCount:
    """One product of a layer. `operands`: what its two factors are ("binary", "pixels", "weight", ...)."""

    name: str
    op: str
    operands: tuple[str, str]
    calls: int
    nominal_macs: float
    spiking_macs: float
    """Those of `nominal_macs` that spikes turn into additions."""
    rate: float
    """Density of non-zeros in the factor that carries the events, or in the input."""
    counts: Counts
    exact: Counts | None = None


@dataclass(frozen=True)
class NeuronCount:
    """A layer of neurons: its updates, and spikes / updates where its output was seen."""

    name: str
    updates: float
    firing_rate: float | None


@dataclass(frozen=True)
class Edge:
    """A tensor that is not binary and enters a product: as a layer's "input", or as one side of attention.

    `what`: "pixels" (the model's input), "membrane", "integer", "ternary", or "float" (averages, ANN activations).
    `multiplies`: whether it costs multiplications, or its partner's spikes only add it up.
    """

    name: str
    op: str
    operand: str
    what: str
    density: float
    nominal_macs: float
    multiplies: bool


@dataclass(frozen=True)
class EnergyReport:
    """Operations of one forward pass, layer by layer, per image. `print(report)` shows it all with the rules."""

    model: str
    images: int
    layers: tuple[LayerCount, ...]
    neurons: tuple[NeuronCount, ...]
    non_binary_edges: tuple[Edge, ...]
    uncounted: tuple[str, ...] = ()
    """Operators into which the counter cannot see: whatever they multiply is missing."""

    @cached_property
    def counts(self) -> Counts:
        """Sums over layers and neurons, by the nominal rule."""
        return self._total([layer.counts for layer in self.layers])

    @cached_property
    def exact(self) -> Counts | None:
        """Sums of the exact counter, if it ran (`count(..., exact=True)`)."""
        exact = [layer.exact for layer in self.layers if layer.exact is not None]
        return self._total(exact) if exact or not self.layers else None

    def _total(self, rows: list[Counts]) -> Counts:
        updates = sum(neuron.updates for neuron in self.neurons)
        return reduce(Counts.__add__, rows, Counts(neuron_updates=updates))

    @property
    def nominal_macs(self) -> float:
        """MACs of all products if nothing were sparse."""
        return sum(layer.nominal_macs for layer in self.layers)

    @property
    def mean_firing_rate(self) -> float:
        """SOPs / MACs of the spiking layers: each layer weighs as much as it computes. 0 without spiking layers."""
        macs = sum(layer.spiking_macs for layer in self.layers)
        return self.counts.sops / macs if macs else 0.0

    @property
    def neuron_firing_rate(self) -> float:
        """The plain mean over neurons and steps: spikes / updates. 0 without neurons."""
        seen = [(n.updates, n.firing_rate) for n in self.neurons if n.firing_rate is not None]
        updates = sum(u for u, _ in seen)
        return sum(u * rate for u, rate in seen) / updates if updates else 0.0

    def energy_mj(self, table: str | CostTable = "paper", *, exact: bool = False) -> float:
        """Energy per image in mJ by a named or given cost table; `exact` prices the exact counter instead."""
        counts = self.exact if exact else self.counts
        if counts is None:
            raise InputError("energy: the exact counter did not run: call count(..., exact=True)")
        return counts.energy_mj(cost_table(table))

    def to_dict(self, table: str | CostTable = "paper") -> dict[str, Any]:
        """Plain data for JSON; docs/energy.md lists the keys."""
        prices = cost_table(table)
        exact = None if self.exact is None else {"energy_mj": self.exact.energy_mj(prices)} | asdict(self.exact)
        return {
            "model": self.model,
            "images": self.images,
            "energy_mj": self.energy_mj(prices),
            "nominal_macs": self.nominal_macs,
            **asdict(self.counts),
            "mean_firing_rate": self.mean_firing_rate,
            "neuron_firing_rate": self.neuron_firing_rate,
            "exact": exact,
            "layers": [asdict(layer) | {"energy_mj": layer.counts.energy_mj(prices)} for layer in self.layers],
            "neurons": [asdict(neuron) for neuron in self.neurons],
            "non_binary_edges": [asdict(edge) for edge in self.non_binary_edges],
            "uncounted": list(self.uncounted),
            "cost_table": asdict(prices),
            "rules": rules(exact=exact is not None),
        }

    def format(self, table: str | CostTable = "paper") -> str:
        """The report as text, priced by `table`."""
        return render(self, cost_table(table))

    def __str__(self) -> str:
        return self.format()
