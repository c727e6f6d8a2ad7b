"""Initial weights: a run that starts from a trained model instead of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2tdpt.errors import ModelError, RecipeError, S2tdptError
from s2tdpt.models import load_model
from s2tdpt.models.vit import VisionTransformer
from s2tdpt.models.weights import load_state
from s2tdpt.training.sources import how_to_make, located

HEAD = ("head.weight", "head.bias")
GEOMETRY = ("num_heads", "stem_pool")
"""What the shapes of tensors do not tell."""


def start_from(model: nn.Module, source: str, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Put the weights that `source` names (MODEL.TAG, a run's folder, a .safetensors file) into `model`; where from.

    Of a model of the same kind everything is taken; of the ANN twin of a spiking model `counterparts`, while norms, the
    other biases and neurons stay as they were drawn, for real activations tell nothing of theirs. So does a head for
    other `classes` (None: any). `RecipeError` if the weights are not there, or do not fit.
    """
    path = located(source)
    try:
        with torch.random.fork_rng(devices=[]):
            trained, card = load_model(path)
        for name in GEOMETRY:
            theirs, ours = (getattr(m.config, name) for m in (trained, model))  # pyright: ignore[reportAttributeAccessIssue]
            if theirs != ours:
                raise ModelError(f"{source} is for another geometry: {name} differs (model and file: {ours}, {theirs})")
        taken = trained.state_dict()
        if isinstance(trained, VisionTransformer) and not isinstance(model, VisionTransformer):
            taken = counterparts(trained)
            drawn = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim < 2}
            taken = {**drawn, **taken}
        theirs = card.get("data", {}).get("classes", classes)
        if classes is not None and list(theirs) != list(classes):
            taken |= {name: tensor for name, tensor in model.state_dict().items() if name in HEAD}
        load_state(model, taken, source=source)
    except (S2tdptError, OSError) as error:
        raise RecipeError(f"initial_weights: {error}{how_to_make(path)}") from error
    return {"source": source, "sha256": card.get("sha256"), "model": card.get("model")}


@torch.no_grad()
def counterparts(twin: VisionTransformer) -> dict[str, Tensor]:
    """A twin's matrices and filters, and the head's bias, by the names that they have in the spiking model.

    A LayerNorm's gain and offset go into the layer after it: W (γ ∘ x + β) + b = (W diag γ) x + (Wβ + b). Of the new
    bias only the head's is taken: elsewhere the spiking model's BatchNorm would take it away again.
    """
    tensors = {name: tensor.clone() for name, tensor in twin.state_dict().items() if tensor.ndim > 1}
    block: Any
    for i, block in enumerate(twin.blocks):
        tensors[f"blocks.{i}.attn.qkv.weight"] *= block.norm1.weight
        tensors[f"blocks.{i}.mlp.0.weight"] *= block.norm2.weight
    tensors["head.weight"] *= twin.norm.weight
    tensors["head.bias"] = twin.head.bias + twin.head.weight @ twin.norm.bias
    renamed = {".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."}
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors
