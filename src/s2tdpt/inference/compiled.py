"""Choosing the engine: by what the CPU can do, and by a short timing beside the plain model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError
from ..models.dispatch import watched
from .engine import Engine, obstacle
from .synapses import integer_obstacle

PRECISIONS = ("auto", "float32", "int16", "int8")
_TIMED_IMAGES = 4
_ROUNDS = 3
_FEW = 32
_WORTHWHILE_SECONDS = 5.0


class CompiledModel(nn.Module):
    """A model compiled for inference: `compiled(x)` gives `model(x)`'s logits.

    `precision` says how ("plain": the model itself, where nothing was faster), `seconds` what the timing found.
    Hooks and listeners of energy and explanation see the plain model, which runs while anybody watches.
    """

    def __init__(self, model: nn.Module, engine: Engine | None, precision: str) -> None:
        super().__init__()
        self.model, self.precision, self.engine = model, precision, engine
        self.seconds: dict[str, float] = {}
        self.training = False

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def time_steps(self) -> int:
        """As the model's; may be assigned, and changes the model's too."""
        return self.model.time_steps  # pyright: ignore[reportReturnType]

    @time_steps.setter
    def time_steps(self, value: int) -> None:
        self.model.time_steps = value  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        if self.model.training:
            raise ModelError("a model compiled for inference cannot be trained: train the model and compile it again")
        if self.engine is None or watched(self):
            return self.model(x)
        return self.engine(x, self.time_steps)


def compile_for_inference(model: nn.Module, *, precision: str = "auto", example: Tensor | None = None) -> CompiledModel:
    """A callable that answers as `model` in evaluation mode does, faster, on the CPU; it keeps today's weights.

    "float32" folds the normalisations and fuses the neurons, with the weights' own precision. "int16" and "int8" round
    the weights to as many bits, one scale a channel, and sum exactly; they need AVX-512 VNNI. Weights that were stored
    in 8 bits lose nothing. "auto" is "int8" where the CPU has it, else "float32", or the plain model where that was not
    slower on `example` (images; default: random ones, 8 x 8 tokens). Raises `ModelError` where a precision that was
    asked for cannot be had.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if model.training:
        raise ModelError("compile_for_inference takes a model in evaluation mode: call model.eval() first")
    hindrance = obstacle(model)
    if hindrance is None and precision in ("int16", "int8"):
        hindrance = integer_obstacle()
    if hindrance is not None:
        if precision != "auto":
            raise ModelError(f"inference in {precision} is not available: {hindrance}")
        return CompiledModel(model, None, "plain")
    if precision != "auto":
        return CompiledModel(model, Engine(model, precision), precision)  # pyright: ignore[reportArgumentType]
    compiled = compile_for_inference(model, precision="float32" if integer_obstacle() else "int8")
    x = _example(model) if example is None else example
    seconds = _race({"plain": lambda: model(x), compiled.precision: lambda: compiled(x)})
    chosen = compiled if seconds[compiled.precision] < seconds["plain"] else CompiledModel(model, None, "plain")
    chosen.seconds = seconds
    return chosen


def accelerate(model: nn.Module, x: Tensor, images: int) -> nn.Module:
    """What answers `images` images like x [B, C, H, W] soonest, compiling included: a compiled model, or `model`."""
    if images <= _FEW or x.device.type != "cpu" or obstacle(model) is not None:
        return model
    x = x[:_TIMED_IMAGES]
    started = time.perf_counter()
    with torch.no_grad():
        model(x)
    if (time.perf_counter() - started) / len(x) * images < _WORTHWHILE_SECONDS:
        return model
    compiled = compile_for_inference(model, example=x)
    return model if compiled.engine is None else compiled


@torch.no_grad()
def agreement(
    model: nn.Module, compiled: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """How far `compiled` answers as `model` does on batches of (images, classes [B]).

    {"n", "changed_predictions": share of other first classes, "top1" and "top1_compiled": fractions, "logit_change":
    mean |difference| of logits}. Raises `InputError` without images.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    n = 0
    for x, target in batches:
        truth, found = model(x).double(), compiled(x).double()
        first, other = truth.argmax(1), found.argmax(1)
        counts = [(first != other).sum(), (first == target).sum(), (other == target).sum()]
        totals += torch.stack([*(c.double() for c in counts), (truth - found).abs().mean(1).sum()])
        n += len(x)
    if n == 0:
        raise InputError("agreement: there is no image to compare on")
    names = ("changed_predictions", "top1", "top1_compiled", "logit_change")
    return {"n": n, **dict(zip(names, (totals / n).tolist(), strict=True))}


def _example(model: Any) -> Tensor:
    side = 8 * model.stem.stride
    made = torch.Generator().manual_seed(0)
    return torch.randn(_TIMED_IMAGES, model.config.in_channels, side, side, generator=made)


@torch.no_grad()
def _race(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, in alternation, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + _ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in times.items()}
