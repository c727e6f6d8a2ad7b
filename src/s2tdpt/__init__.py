"""Spiking vision Transformers whose self-attention is spike-timing-dependent plasticity."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import attention, data, energy, explain, models, neurons, ops, training
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
    "attention",
    "create_model",
    "data",
    "energy",
    "explain",
    "list_models",
    "load_model",
    "models",
    "neurons",
    "ops",
    "training",
]

_HOMES = {
    "LIF": "neurons",
    "PLIF": "neurons",
    "STDPAttention": "attention",
    "StdpWindow": "ops.stdp",
    "create_model": "models",
    "list_models": "models",
    "load_model": "models",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line answers at once where it needs no torch."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
