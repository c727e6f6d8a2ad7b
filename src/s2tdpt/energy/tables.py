"""What one operation costs: named tables, each with the source of its figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ..errors import InputError


@dataclass(frozen=True)
class CostTable:
    """Energy of one operation in pJ.

    `mac`: float x float multiply-accumulate; `ac`: one addition set off by a spike; `integer_mac`: an event that
    carries a number, times a weight (None: the price of `mac`); `table_read`: one synaptic value read from the STDP
    table; `neuron_update`: one neuron, one time step. `source` says where the figures come from.
    """

    name: str
    mac: float
    ac: float
    integer_mac: float | None = None
    table_read: float = 0.0
    neuron_update: float = 0.0
    source: str = "given by the user"

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            number = isinstance(value, (int, float))
            if number and not (math.isfinite(value) and value >= 0):
                raise InputError(f"cost table {self.name!r}: {key} is {value}; it must be 0 or more pJ")

    @property
    def integer_mac_pj(self) -> float:
        return self.mac if self.integer_mac is None else self.integer_mac


_HOROWITZ = "M. Horowitz, Computing's energy problem, ISSCC 2014, fig. 1.1.9 (45 nm, 0.9 V)"
_ARITHMETIC = (
    "a neuron update is one addition and one comparison (priced as an addition), halving is a shift and free; a table "
    "read is one 32-bit word of an 8 KB SRAM (half of the 10 pJ of a 64-bit access); moving weights, spikes and "
    "membranes is not priced"
)

TABLES: dict[str, CostTable] = {
    table.name: table
    for table in (
        CostTable(
            "paper",
            mac=4.6,
            ac=0.9,
            source="arXiv 2511.14691, eq. 29, 45 nm: E_MAC 4.6 pJ (printed there as 46 pJ, which its own totals rule "
            "out), E_AC 0.9 pJ; the equation prices neither table reads nor neuron updates",
        ),
        CostTable(
            "horowitz_45nm_fp32",
            mac=3.7 + 0.9,
            ac=0.9,
            table_read=5.0,
            neuron_update=2 * 0.9,
            source=f"{_HOROWITZ}: fp32 multiplication 3.7 pJ, addition 0.9 pJ; {_ARITHMETIC}",
        ),
        CostTable(
            "horowitz_45nm_fp16",
            mac=1.1 + 0.4,
            ac=0.4,
            table_read=5.0,
            neuron_update=2 * 0.4,
            source=f"{_HOROWITZ}: fp16 multiplication 1.1 pJ, addition 0.4 pJ; {_ARITHMETIC}",
        ),
        CostTable(
            "horowitz_45nm_int8",
            mac=0.2 + 0.1,
            ac=0.1,
            table_read=5.0,
            neuron_update=2 * 0.1,
            source=f"{_HOROWITZ}: 8-bit multiplication 0.2 pJ, 32-bit integer addition 0.1 pJ (an 8-bit addition, "
            f"0.03 pJ, would overflow in the first layer); {_ARITHMETIC}",
        ),
    )
}


def cost_table(table: str | CostTable) -> CostTable:
    """The table of that name, or the table itself; an unknown name is an `InputError` that lists the known ones."""
    if isinstance(table, CostTable):
        return table
    if table not in TABLES:
        raise InputError(f"unknown cost table {table!r}: choose one of {', '.join(TABLES)}, or pass a CostTable")
    return TABLES[table]
