"""An energy report as aligned text, with its rules and sources."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .rules import rules
from .tables import CostTable

if TYPE_CHECKING:
    from .report import EnergyReport

_WIDTH = 118


def render(report: EnergyReport, prices: CostTable) -> str:
    """Layers, totals, non-binary edges, rules and source."""
    return "\n".join(_sections(report, prices))


def _sections(report: EnergyReport, prices: CostTable) -> Iterable[str]:
    total = report.counts
    yield f"{report.model}: {total.energy_mj(prices):.4g} mJ per image by table {prices.name!r}"
    yield ""
    header = ["layer", "op", "operands", "nominal MACs (M)", "rate", "SOPs (M)", "int MACs (M)", "MACs (M)", "µJ"]
    rows = [
        [
            layer.name,
            layer.op,
            " x ".join(layer.operands),
            _millions(layer.nominal_macs),
            f"{layer.rate:.4f}",
            _millions(layer.counts.sops),
            _millions(layer.counts.integer_macs),
            _millions(layer.counts.macs),
            f"{layer.counts.energy_mj(prices) * 1e3:.3f}",
        ]
        for layer in report.layers
    ]
    sums = [
        "total",
        "",
        "",
        _millions(report.nominal_macs),
        f"{report.mean_firing_rate:.4f}",
        _millions(total.sops),
        _millions(total.integer_macs),
        _millions(total.macs),
        f"{sum(layer.counts.energy_mj(prices) for layer in report.layers) * 1e3:.3f}",
    ]
    yield from _table([header, *rows, sums], left=3)
    yield ""
    yield (
        f"neuron updates {_millions(total.neuron_updates)} M ({total.neuron_updates * prices.neuron_update * 1e-6:.3f} "
        f"µJ), table reads {_millions(total.table_reads)} M"
    )
    yield (
        f"mean firing rate {report.mean_firing_rate:.4f} (SOPs / MACs of spiking layers), "
        f"{report.neuron_firing_rate:.4f} (plain mean over neurons)"
    )
    if report.exact is not None:
        exact = report.exact
        yield (
            f"exact count: {exact.energy_mj(prices):.4g} mJ; additions {_millions(exact.sops)} M, integer MACs "
            f"{_millions(exact.integer_macs)} M, MACs {_millions(exact.macs)} M, table reads "
            f"{_millions(exact.table_reads)} M"
        )
    yield ""
    yield f"tensors that are not binary and enter a product: {len(report.non_binary_edges) or 'none'}"
    edges = [
        [
            f"  {edge.name}",
            edge.op,
            edge.operand,
            edge.what,
            f"{_millions(edge.nominal_macs)} M MACs",
            "multiplied" if edge.multiplies else "only added up",
        ]
        for edge in report.non_binary_edges
    ]
    yield from _table(edges, left=4)
    if report.uncounted:
        yield ""
        yield f"NOT COUNTED, the counter cannot see into: {', '.join(report.uncounted)}"
    yield ""
    yield "rules"
    for rule in rules(exact=report.exact is not None):
        yield textwrap.fill(rule, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    yield (
        f"prices {prices.name!r}, pJ: MAC {prices.mac:g}, SOP {prices.ac:g}, integer MAC {prices.integer_mac_pj:g}, "
        f"table read {prices.table_read:g}, neuron update {prices.neuron_update:g}"
    )
    yield textwrap.fill(f"source: {prices.source}", _WIDTH, subsequent_indent="  ")


def _millions(count: float) -> str:
    return f"{count / 1e6:.4f}"


def _table(rows: Sequence[Sequence[str]], *, left: int) -> Iterable[str]:
    """Rows in columns of one width each; the first `left` columns are text, the others line up at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
