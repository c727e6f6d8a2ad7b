"""Everything that a recipe names, built: data, model, optimisers, schedule."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2tdpt.data import Augment, DeviceLoader, ImageSet, load
from s2tdpt.errors import RecipeError
from s2tdpt.models import create_model
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.training.distill import Distillation, load_distillation
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.ema import Ema
from s2tdpt.training.evaluate import evaluate_ranks, firing_rates
from s2tdpt.training.initial import start_from
from s2tdpt.training.logging import announcement
from s2tdpt.training.numerics import scoring
from s2tdpt.training.optim import Optimizers, build_optimizer
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.schedule import Schedule, parse_plan
from s2tdpt.training.spike_cost import put_price
from s2tdpt.training.step import TrainStep, memory_advice, reestimate_batch_norm

RATE_IMAGES = 500  # firing rates are measured on so many of the evaluation images
PROBE_IMAGES = 100  # the time of an evaluation is estimated from so many


@dataclass
class Setup:
    """The parts of a run; `evaluated_on` is "test", or "holdout" where training images stand in for the test set."""

    recipe: Recipe
    ranks: Ranks
    loader: DeviceLoader
    eval_set: ImageSet
    evaluated_on: str
    model: nn.Module
    optimizers: Optimizers
    ema: Ema | None
    train_step: TrainStep
    schedule: Schedule
    distillation: Distillation | None = None
    initial: dict[str, Any] | None = None

    @classmethod
    def build(cls, recipe: Recipe, ranks: Ranks, data_root: Path | None, progress: bool, begun: bool = False) -> Setup:
        """Load, create, compile, and look how long the evaluation at the end will take.

        `begun`: a checkpoint has the weights that the model goes on with, and says which it once started from.
        """
        train_set, eval_set, evaluated_on = load_sets(recipe, ranks, data_root, progress)
        loader = DeviceLoader(
            train_set,
            recipe.data.batch_size,
            device=ranks.device,
            augment=None if recipe.augment == Augment() else recipe.augment,
            seed=recipe.seed,
            shuffle=True,
            drop_last=True,
            rank=ranks.rank,
            world_size=ranks.world_size,
            label_smoothing=recipe.label_smoothing,
        )
        model = build_model(recipe, train_set)
        initial = None
        if recipe.initial_weights and not begun:
            initial = start_from(model, recipe.initial_weights, train_set.classes)
        model = model.to(ranks.device)
        if recipe.implementation != "auto":
            if not isinstance(model, SpikingTransformer):
                raise RecipeError(f"implementation: {recipe.model.name} has only one: leave it at auto")
            model.implementation = recipe.implementation
        if recipe.spike_cost:
            put_price(model, recipe.spike_cost, train_set.images[:1].float().to(ranks.device))
        if ranks.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizers = build_optimizer(model, recipe.optimizer)
        ema = Ema(model, recipe.ema_decay) if recipe.ema_decay > 0 else None
        distillation = load_distillation(recipe.distill, train_set, ranks.device) if recipe.distill else None
        train_step = TrainStep(model, optimizers, recipe, ranks, distillation)
        schedule = Schedule(recipe, loader.steps_per_epoch)
        eval_set = eval_set.to(ranks.device)
        parts = (loader, eval_set, evaluated_on, model, optimizers, ema, train_step, schedule, distillation, initial)
        setup = cls(recipe, ranks, *parts)
        if progress and ranks.is_main:
            print(announcement(recipe, ranks.device), file=sys.stderr, flush=True)
        if recipe.compile or train_step.graph is not None:
            with memory_advice(recipe, "training"):
                train_step.warm_up(*next(loader.epoch(0)), dict.fromkeys(p.time_steps for p in schedule.phases))
        if recipe.max_minutes is not None:
            reserve = setup._evaluation_seconds()
            if reserve > 60 * recipe.max_minutes:
                raise RecipeError(
                    f"max_minutes: {recipe.max_minutes:g} is not enough, the evaluation at the end alone takes about "
                    f"{reserve / 60:.1f} minutes on {ranks.device}: --set max_minutes=null removes the limit"
                )
            setup.schedule = Schedule(recipe, loader.steps_per_epoch, reserve_seconds=reserve)
        return setup

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and targets of an epoch; those of an earlier one where a teacher's `views` repeat."""
        shown = epoch if self.distillation is None else self.distillation.view(epoch)
        return self.loader.epoch(shown, start_step)

    def measure_norms(self) -> None:
        """Give the weights, and their average, BatchNorm statistics of their own: see `norm_batches`, which is > 0."""
        with memory_advice(self.recipe, "training"):
            self._measure(self.recipe.norm_batches)
            if self.ema is not None:
                with self.ema.swap():
                    self._measure(self.recipe.norm_batches)
                    self.ema.adopt()

    def evaluate(self, *, measured: bool) -> dict[str, Any]:
        """Scores of the weights as they are ("last") and of their average ("ema"), and firing rates ("rates").

        The rates are those of the weights that the run hands out: the average where there is one. `measured`: after
        `measure_norms`. Before, averaged statistics do not fit the averaged weights: these get their own for the while.
        """
        with memory_advice(self.recipe, "evaluation"):
            results: dict[str, Any] = {"last": self._score(self.eval_set)}
            if self.ema is None:
                return {**results, "rates": self._rates()}
            with self.ema.swap():
                if self.recipe.norm_batches and not measured:
                    self._measure(self.recipe.norm_batches)
                return {**results, "ema": self._score(self.eval_set), "rates": self._rates()}

    def _score(self, data: ImageSet) -> dict[str, Any]:
        self.ranks.broadcast_(list(self.model.buffers()))  # BatchNorm's statistics are each rank's own; 0's are kept
        batch_size, precision = self.recipe.data.eval_batch_size, self.recipe.scored_in
        return evaluate_ranks(self.model, data, self.ranks, batch_size=batch_size, precision=precision)

    def _measure(self, batches: int) -> None:
        """BatchNorm statistics as plain means over `batches` clean batches of training images; at most one epoch."""
        clean = DeviceLoader(
            self.loader.data,
            self.recipe.data.batch_size,
            device=self.ranks.device,
            seed=self.recipe.seed,
            shuffle=True,
            drop_last=True,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        images = (x for x, _ in islice(clean.epoch(0), batches))
        reestimate_batch_norm(self.model, images, self.ranks.device, self.recipe.scored_in)

    def _rates(self) -> dict[str, Any]:
        images = min(RATE_IMAGES, self.recipe.data.eval_batch_size, len(self.eval_set))
        x, _ = next(DeviceLoader(self.eval_set.limit(images), images, device=self.ranks.device).epoch(0))
        with scoring(self.ranks.device, self.recipe.scored_in):
            return {**firing_rates(self.model, x), "firing_images": images}

    def _evaluation_seconds(self) -> float:
        """Estimate of what statistics, evaluation and saving take at the end of the run; the same on every rank."""
        probe = self.eval_set.limit(PROBE_IMAGES)
        self._score(probe)
        begun = time.monotonic()
        self._score(probe)
        once = (time.monotonic() - begun) * math.ceil(len(self.eval_set) / len(probe))
        once += self._norm_seconds()
        return self.ranks.from_main([once * (1 if self.ema is None else 2) + 1.0])[0]

    def _norm_seconds(self) -> float:
        """Estimate of what `norm_batches` take."""
        batches = min(self.recipe.norm_batches, self.loader.steps_per_epoch)
        if not batches:
            return 0.0
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self._measure(1)
        begun = time.monotonic()
        self._measure(1)
        next(self.model.parameters()).sum().item()  # waits for the device
        once = time.monotonic() - begun
        for buffer, value in kept:
            buffer.copy_(value)
        return once * batches


def load_sets(recipe: Recipe, ranks: Ranks, data_root: Path | None, progress: bool) -> tuple[ImageSet, ImageSet, str]:
    """Training and evaluation images, and what the latter are: "test" or "holdout"."""

    def read() -> tuple[ImageSet, ImageSet, str]:
        train_set = load(recipe.data.name, "train", root=data_root, progress=progress and ranks.is_main)
        if recipe.data.holdout:
            return *train_set.holdout(recipe.data.holdout), "holdout"
        return train_set, load(recipe.data.name, "test", root=data_root, progress=progress and ranks.is_main), "test"

    return ranks.on_main(read) or read()  # rank 0 downloads, then the others find it there


def build_model(recipe: Recipe, data: ImageSet) -> nn.Module:
    """The recipe's model with weights that depend on `recipe.seed` alone; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return create_model(
            recipe.model.name,
            num_classes=len(data.classes),
            in_channels=data.channels,
            time_steps=parse_plan(recipe.schedule.time_steps)[-1].time_steps,
            attention=recipe.model.attention,
            **recipe.model.options,
        )
