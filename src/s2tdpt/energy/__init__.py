"""Energy: counts the operations of any spiking or ordinary model and prices them by named cost tables."""

from .counter import count
from .operands import Operand, classify
from .report import Counts, Edge, EnergyReport, LayerCount, NeuronCount
from .tables import TABLES, CostTable, cost_table

__all__ = [
    "TABLES",
    "CostTable",
    "Counts",
    "Edge",
    "EnergyReport",
    "LayerCount",
    "NeuronCount",
    "Operand",
    "classify",
    "cost_table",
    "count",
]
