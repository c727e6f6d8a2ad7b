"""Choosing the engine: by what the CPU or GPU can do, and by a short timing beside the plain model."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError, ModelError
from ..models.dispatch import watched
from . import gpu
from .engine import Engine, obstacle
from .synapses import integer_obstacle

PRECISIONS = ("auto", "float32", "int16", "int8")
_TIMED_IMAGES = {"cpu": 4, "cuda": 128}
_ROUNDS = 3
_FEW = 32
_WORTHWHILE_SECONDS = {"cpu": 5.0, "cuda": 30.0}
"""A GPU's kernels are compiled first."""


class _Runs(Protocol):
    def __call__(self, x: Tensor, time_steps: int) -> Tensor: ...

    def refusal(self, x: Tensor, time_steps: int) -> str | None: ...


class CompiledModel(nn.Module):
    """A model compiled for inference: `compiled(x)` gives `model(x)`'s logits.

    `precision` says how ("plain": the model itself, where nothing was faster), `seconds` what the timing found.
    Hooks and listeners of energy and explanation see the plain model, which runs while anybody watches.
    Its weights are those of compiling, so what would change them (`to`, `half`, `load_state_dict`, `train`, …) raises
    `ModelError`, in "plain" too: change the model and compile it again. `to` where it is already changes nothing.
    """

    def __init__(self, model: nn.Module, engine: _Runs | None, precision: str, *, asked: bool = False) -> None:
        super().__init__()
        self.model, self.precision, self.engine, self.asked = model, precision, engine, asked
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
            raise _unchangeable("trained: train")
        if self.engine is None or watched(self):
            return self.model(x)
        if (refusal := self.engine.refusal(x, self.time_steps)) is None:
            return self.engine(x, self.time_steps)
        if self.asked:
            raise ModelError(f"inference in {self.precision} is not available: {refusal}")
        return self.model(x)

    def train(self, mode: bool = True) -> CompiledModel:
        if mode:
            raise _unchangeable("trained: train")
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompiledModel:
        """Of `to`, `half`, `cuda` and the like."""
        if any(fn(tensor) is not tensor for tensor in (*self.parameters(), *self.buffers())):
            raise _unchangeable("moved or converted: move or convert")
        return self

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Of `load_state_dict`, this model's or that of one around it."""
        raise _unchangeable("given other weights: load them into")


def _unchangeable(what: str) -> ModelError:
    return ModelError(f"a model compiled for inference cannot be {what} the model and compile it again")


def compile_for_inference(model: nn.Module, *, precision: str = "auto", example: Tensor | None = None) -> CompiledModel:
    """A callable that answers as `model` in evaluation mode does, faster, where `model` is; it keeps today's weights.

    On a CPU "float32" folds the normalisations and fuses the neurons, with the weights' own precision; "int16" and
    "int8" round the weights to as many bits, one scale a channel, and sum exactly; they need AVX-512 VNNI. On a GPU
    there is "int8". Weights that were stored in 8 bits lose nothing. "auto" is "int8" where it is to be had, else
    "float32", or the plain model where that was not slower on `example` (images; default: random ones, 8 x 8 tokens).
    Raises `ModelError` where a precision that was asked for cannot be had.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if model.training:
        raise ModelError("compile_for_inference takes a model in evaluation mode: call model.eval() first")
    asked = precision != "auto"
    place = _device(model)
    hindrance = _hindrance(model, place, precision)
    if hindrance is not None:
        if asked:
            raise ModelError(f"inference in {precision} is not available: {hindrance}")
        return CompiledModel(model, None, "plain")
    if not asked:
        precision = "float32" if place.type == "cpu" and integer_obstacle() else "int8"
    engine = _engine(model, place, precision)
    compiled = CompiledModel(model, engine, precision, asked=asked)
    if asked:
        return compiled
    x = _example(model, place) if example is None else example
    if engine.refusal(x, model.time_steps) is not None:  # pyright: ignore[reportArgumentType]
        return CompiledModel(model, None, "plain")
    if (failure := _failure(compiled, x)) is not None:
        warnings.warn(f"inference in {precision} fails here, the plain model goes on: {failure}", stacklevel=2)
        return CompiledModel(model, None, "plain")
    seconds = _race({"plain": lambda: model(x), precision: lambda: compiled(x)}, place)
    chosen = compiled if seconds[precision] < seconds["plain"] else CompiledModel(model, None, "plain")
    chosen.seconds = seconds
    return chosen


@torch.no_grad()
def _failure(compiled: CompiledModel, x: Tensor) -> str | None:
    """What went wrong on a GPU, whose compiler sees a layer's real size only now; None if nothing did."""
    if not x.is_cuda:
        return None
    try:
        compiled(x)
    except Exception as error:  # the compiler's own, of any class
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _hindrance(model: nn.Module, place: torch.device, precision: str) -> str | None:
    """Why there is no engine of that precision there, or None."""
    if place.type != "cuda":
        return obstacle(model) or (integer_obstacle() if precision in ("int16", "int8") else None)
    if precision in ("float32", "int16"):
        return "on a GPU the choice is int8 or the model itself, whose kernels are fused already"
    return gpu.obstacle(model)


def _engine(model: Any, place: torch.device, precision: str) -> _Runs:
    if place.type != "cuda":
        return Engine(model, precision)
    from .packed import PackedEngine  # which needs Triton

    return PackedEngine(model)


def accelerate(model: nn.Module, x: Tensor, images: int) -> nn.Module:
    """What answers `images` images like x [B, C, H, W] soonest, compiling included: a compiled model, or `model`."""
    place = x.device
    if images <= _FEW or place.type not in _WORTHWHILE_SECONDS:
        return model
    if place.type == "cpu" and obstacle(model) is not None:
        return model
    count = _TIMED_IMAGES[place.type]
    x = x.repeat(-(-count // len(x)), *(1,) * (x.ndim - 1))[:count]
    with torch.no_grad():
        if place.type == "cuda":
            model(x)  # compiles its own kernels
        seconds = _seconds(lambda: model(x), place)
    if seconds / len(x) * images < _WORTHWHILE_SECONDS[place.type]:
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
        totals += torch.stack([*(c.double() for c in counts), (truth - found).abs().mean(1).sum()]).cpu()
        n += len(x)
    if n == 0:
        raise InputError("agreement: there is no image to compare on")
    names = ("changed_predictions", "top1", "top1_compiled", "logit_change")
    return {"n": n, **dict(zip(names, (totals / n).tolist(), strict=True))}


def _example(model: Any, place: torch.device) -> Tensor:
    side = 8 * model.stem.stride
    made = torch.Generator().manual_seed(0)
    x = torch.randn(_TIMED_IMAGES[place.type], model.config.in_channels, side, side, generator=made)
    return x.to(place, model.head.weight.dtype)


@torch.no_grad()
def _race(runs: dict[str, Callable[[], object]], place: torch.device) -> dict[str, float]:
    """Median seconds of each, in alternation, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + _ROUNDS):
        for name, run in runs.items():
            times[name].append(_seconds(run, place))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _seconds(run: Callable[[], object], place: torch.device) -> float:
    started = time.perf_counter()
    run()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - started
