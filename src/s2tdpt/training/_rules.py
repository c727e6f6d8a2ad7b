"""What the values of a recipe may be, by dotted key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from s2tdpt.errors import RecipeError
from s2tdpt.training.schedule import parse_plan

if TYPE_CHECKING:
    from s2tdpt.training.recipe import Recipe

_Rule = tuple[str, Callable[[Any], bool]]
_TEXT: _Rule = ("some text", lambda value: bool(value.strip()))
_AT_LEAST_0: _Rule = ("at least 0", lambda value: value >= 0)
_AT_LEAST_1: _Rule = ("at least 1", lambda value: value >= 1)
_POSITIVE: _Rule = ("more than 0", lambda value: value > 0)
_BELOW_1: _Rule = ("at least 0 and below 1", lambda value: 0 <= value < 1)
_FRACTION: _Rule = ("between 0 and 1", lambda value: 0 <= value <= 1)
_PLAN: _Rule = ("a plan like '1:190,4:11' (time steps:epochs, both at least 1)", lambda value: _is_plan(value))
_RULES: dict[str, _Rule] = {
    "name": _TEXT,
    "data.batch_size": _AT_LEAST_1,
    "data.eval_batch_size": _AT_LEAST_1,
    "data.holdout": _AT_LEAST_0,
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _AT_LEAST_0,
    "optimizer.betas": _BELOW_1,
    "optimizer.adamw_lr": _POSITIVE,
    "optimizer.momentum": _BELOW_1,
    "optimizer.ns_steps": _AT_LEAST_1,
    "optimizer.clip_grad_norm": _POSITIVE,
    "schedule.time_steps": _PLAN,
    "schedule.warmup": _BELOW_1,
    "schedule.switch_lr": _FRACTION,
    "schedule.final_lr": _FRACTION,
    "label_smoothing": _BELOW_1,
    "ema_decay": _BELOW_1,
    "norm_batches": _AT_LEAST_0,
    "spike_cost": _AT_LEAST_0,
    "initial_weights": _TEXT,
    "distill.teacher": _TEXT,
    "distill.weight": _FRACTION,
    "distill.temperature": _POSITIVE,
    "distill.views": _AT_LEAST_0,
    "max_minutes": _POSITIVE,
    "seed": _AT_LEAST_0,
    "eval_every": _AT_LEAST_1,
    "checkpoint_every_minutes": _AT_LEAST_0,
}


_DECIDED_BY = {
    "name": "model.name",
    "attention": "model.attention",
    "time_steps": "schedule.time_steps",
    "num_classes": "the data",
    "in_channels": "the data",
}


def refuse_impossible_values(recipe: Recipe) -> None:
    """Raise `RecipeError`, with the dotted key, for the first value that cannot be."""
    for key in recipe.model.options:
        if key in _DECIDED_BY:
            raise RecipeError(f"model.options.{key}: {_DECIDED_BY[key]} decides it: remove it")
    for key, (wanted, holds) in _RULES.items():
        value: Any = recipe
        for name in key.split("."):
            value = None if value is None else getattr(value, name)
        for part in value if isinstance(value, tuple) else [value]:
            if part is not None and not (holds(part) and part != math.inf):
                raise RecipeError(f"{key}: must be {wanted}, not {part!r}")


def _is_plan(text: str) -> bool:
    try:
        return bool(parse_plan(text))
    except RecipeError:
        return False
