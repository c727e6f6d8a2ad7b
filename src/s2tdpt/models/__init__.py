"""Models: configuration, stem, block, Transformer, its ANN twin, and the registry that names them."""

from .config import ModelConfig
from .registry import create_model, list_models, load_model
from .transformer import SpikingTransformer
from .vit import VisionTransformer
from .weights import load_weights, save_weights

__all__ = [
    "ModelConfig",
    "SpikingTransformer",
    "VisionTransformer",
    "create_model",
    "list_models",
    "load_model",
    "load_weights",
    "save_weights",
]
