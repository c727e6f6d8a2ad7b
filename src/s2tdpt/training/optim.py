"""Optimisers for a model, as a recipe describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from s2tdpt.errors import CheckpointError
from s2tdpt.training.muon import Muon
from s2tdpt.training.recipe import OptimizerRecipe


class Optimizers:
    """One or two torch optimizers that step together; learning rates are the recipe's times one common factor."""

    def __init__(self, optimizers: list[Optimizer], names: Mapping[Tensor, str]) -> None:
        self.optimizers = optimizers
        self._names = names
        self._base_lrs = [float(group["lr"]) for group in self._groups()]

    def parameters(self) -> list[Tensor]:
        """Every parameter that is trained, for clipping gradients."""
        return [param for group in self._groups() for param in group["params"]]

    def step(self) -> None:
        """One update from the gradients at hand."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def set_lr_factor(self, factor: float) -> None:
        """Set each learning rate to `factor` times its value in the recipe, in place where it is a tensor."""
        for group, base in zip(self._groups(), self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def state_dict(self) -> dict[str, Tensor]:
        """The moments as live tensors by flat names such as "exp_avg/head.weight"; learning rates are not in it."""
        return {
            f"{key}/{self._names[param]}": value
            for optimizer in self.optimizers
            for param, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the moments that `state_dict` gave; CheckpointError if they are another model's."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for flat_name, value in state.items():
            key, _, name = flat_name.partition("/")
            by_name.setdefault(name, {})[key] = value
        for optimizer in self.optimizers:
            packed = optimizer.state_dict()
            params = [param for group in optimizer.param_groups for param in group["params"]]
            packed["state"] = {}
            for index, param in enumerate(params):
                moments = by_name.pop(self._names[param], {})
                if any(value.ndim and value.shape != param.shape for value in moments.values()):
                    raise CheckpointError(f"optimizer state of {self._names[param]} has another shape: start a new run")
                if moments:
                    packed["state"][index] = moments
                for key, value in optimizer.state.get(param, {}).items():
                    value.copy_(moments[key]) if key in moments else value.zero_()
            if not optimizer.state:  # else it has been filled in place: a recorded step knows those addresses
                optimizer.load_state_dict(packed)
        if by_name:
            raise CheckpointError(f"optimizer state of {min(by_name)}, which this run does not train: start a new run")


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> Optimizers:
    """Optimizers over the parameters of `model` that require gradients; one-dimensional ones see no weight decay.

    "adamw" is AdamW for all. "muon" is Muon for matrices and convolution kernels, and AdamW at `adamw_lr` for the rest:
    the first convolution, `model.head` and everything else. On CUDA the learning rates are tensors, for CUDA graphs.
    """
    names: dict[Tensor, str] = {param: name for name, param in model.named_parameters() if param.requires_grad}
    edges = edge_parameters(model)
    on_muon = [p for p in names if recipe.name == "muon" and p.ndim in (2, 4) and p not in edges]
    rest = [p for p in names if p not in set(on_muon)]
    optimizers: list[Optimizer] = []
    if on_muon:
        optimizers.append(
            Muon(
                on_muon,
                _rate(recipe.lr, on_muon[0]),
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
                ns_steps=recipe.ns_steps,
            )
        )
    if rest:
        lr = recipe.adamw_lr if recipe.name == "muon" else recipe.lr
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [{**group, "lr": _rate(lr, rest[0])} for group in groups if group["params"]]
        optimizers.append(AdamW(groups, betas=recipe.betas, fused=True, capturable=rest[0].is_cuda))
    return Optimizers(optimizers, names)


def _rate(lr: float, like: Tensor) -> float | Tensor:
    return torch.tensor(lr, device=like.device) if like.is_cuda else lr


def edge_parameters(model: nn.Module) -> set[Tensor]:
    """Parameters of the first convolution, which sees pixels, and of the head, which speaks classes."""
    first_conv = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    edges = [module for module in (first_conv, getattr(model, "head", None)) if isinstance(module, nn.Module)]
    return {param for module in edges for param in module.parameters()}
