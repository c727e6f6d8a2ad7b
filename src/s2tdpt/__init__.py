"""Spiking vision Transformers whose self-attention is spike-timing-dependent plasticity."""

from . import ops
from .attention import STDPAttention
from .models import create_model, list_models, load_model
from .neurons import LIF, PLIF
from .ops.stdp import StdpWindow

__version__ = "0.1.0"

__all__ = [
    "LIF",
    "PLIF",
    "STDPAttention",
    "StdpWindow",
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "ops",
]
