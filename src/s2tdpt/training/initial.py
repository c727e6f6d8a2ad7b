"""Initial weights: a run that starts from a trained model instead of random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s2tdpt.errors import ModelError, RecipeError, S2tdptError
from s2tdpt.models import load_model
from s2tdpt.models.vit import VisionTransformer
from s2tdpt.models.weights import load_state

HEAD = ("head.weight", "head.bias")


def start_from(model: nn.Module, source: str) -> dict[str, Any]:
    """Put the weights that `source` names (MODEL.TAG, a run's folder, a .safetensors file) into `model`; where from.

    Of a model of the same kind everything is taken; of the ANN twin of a spiking model its matrices and filters
    (`matrices`), while norms, biases and neurons stay as they were drawn, for real activations tell nothing of theirs.
    A head for other classes stays as it was drawn too. `RecipeError` if the weights are not there, or do not fit.
    """
    try:
        trained, card = load_model(source)
        if isinstance(trained, VisionTransformer) and not isinstance(model, VisionTransformer):
            taken = matrices(trained)
            own = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim > 1}
            if odd := [name for name in own if name not in taken and name not in HEAD]:
                raise ModelError(f"{source} has no {odd[0]}")
            load_state(model, model.state_dict() | taken, source=source)
        else:
            load_state(model, trained.state_dict(), source=source)
    except (S2tdptError, OSError) as error:
        raise RecipeError(f"initial_weights: {error}") from error
    return {"source": source, "sha256": card.get("sha256"), "model": card.get("model")}


@torch.no_grad()
def matrices(twin: VisionTransformer) -> dict[str, Tensor]:
    """A twin's matrices and filters by the names that they have in the spiking model.

    The gain of a LayerNorm goes into the matrix that follows it: W (γ ∘ x) = (W diag γ) x. Its offset becomes a
    constant there, which the spiking model's BatchNorm would take away again.
    """
    gains = {"norm.": "head.", "norm1.": "attn.qkv.", "norm2.": "mlp.0."}
    tensors = {name: tensor.clone() for name, tensor in twin.state_dict().items() if tensor.ndim > 1}
    for name, module in twin.named_modules():
        if isinstance(module, nn.LayerNorm):
            parent, _, own = name.rpartition(".")
            target = f"{parent}." * bool(parent) + gains[f"{own}."] + "weight"
            tensors[target] *= module.weight
    renamed = {".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."}
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors
