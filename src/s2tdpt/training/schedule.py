"""The time-step plan, and the learning rate as a pure function of the place in it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s2tdpt.errors import RecipeError

if TYPE_CHECKING:
    from s2tdpt.training.recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """A stretch of the run at one number of time steps.

    Epochs are numbered through the whole run, from `first_epoch`; a phase that the clock cuts leaves a gap.
    """

    index: int
    time_steps: int
    epochs: int
    first_epoch: int

    @property
    def epoch_cost(self) -> float:
        """In units of an epoch at T = 1, a quarter of which does not grow with T (3.2 at T = 4, measured)."""
        return (1 + 3 * self.time_steps) / 4

    @property
    def cost(self) -> float:
        """Share of the wall clock, in units of one epoch at T = 1."""
        return self.epochs * self.epoch_cost


def parse_plan(text: str) -> tuple[Phase, ...]:
    """Read a time-step plan: "1:190,4:11" trains 190 epochs at T = 1, then 11 at T = 4. Raises RecipeError."""
    phases: list[Phase] = []
    first_epoch = 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d*)\s*:\s*([1-9]\d*)\s*", part)
        if match is None:
            raise RecipeError(
                f"{text!r} is not a time-step plan like '1:190,4:11' (time steps:epochs, both at least 1)"
            )
        time_steps, epochs = int(match[1]), int(match[2])
        phases.append(Phase(len(phases), time_steps, epochs, first_epoch))
        first_epoch += epochs
    return tuple(phases)


@dataclass(frozen=True)
class Position:
    """Where a run stands: `step` optimiser steps done in phase number `phase`, which began `started` s into the run.

    A checkpoint keeps these three numbers and the seconds elapsed; nothing else is needed to go on.
    """

    phase: int = 0
    step: int = 0
    started: float = 0.0


class Schedule:
    """When each phase ends and what the learning rate is, for a recipe and a number of steps an epoch.

    Without `max_minutes` all of it depends on the step alone. With it, a phase also ends when its part of the wall
    clock is used: what is left of `60 * max_minutes - reserve_seconds` when it starts, shared with the later phases by
    their cost. `elapsed` is then the run's age in seconds (the same on every rank); time spent before a
    phase, on compilation say, is left out by giving the phase's first `Position` a later `started`.
    The loop: until `finished`, look up `epoch` and `lr_factor`, make the step, `advance`.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int, *, reserve_seconds: float = 0.0) -> None:
        if steps_per_epoch < 1:
            raise RecipeError(f"data.batch_size: {recipe.data.batch_size} is more than the training images")
        self.recipe = recipe.schedule
        self.phases = parse_plan(recipe.schedule.time_steps)
        self.steps_per_epoch = steps_per_epoch
        self.budget = None if recipe.max_minutes is None else max(0.0, 60 * recipe.max_minutes - reserve_seconds)

    @property
    def epochs(self) -> int:
        """Epochs of the whole plan."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def total_steps(self) -> int:
        """Steps of the whole plan; fewer are done when the clock cuts it."""
        return self.epochs * self.steps_per_epoch

    def finished(self, position: Position) -> bool:
        """True when every phase is over."""
        return position.phase >= len(self.phases)

    def epoch(self, position: Position) -> tuple[int, int]:
        """Number of the epoch in the whole plan, and the step to do next within it."""
        epochs, step = divmod(position.step, self.steps_per_epoch)
        return self.phases[position.phase].first_epoch + epochs, step

    def progress(self, position: Position, elapsed: float = 0.0) -> float:
        """Part of the phase that is over, in [0, 1]: of its steps or of its time, whichever is more."""
        return self._progress(position, position.step, elapsed)

    def advance(self, position: Position, elapsed: float = 0.0) -> Position:
        """The position after one more step: in the same phase, or at the start of the next."""
        after = Position(position.phase, position.step + 1, position.started)
        return after if self.progress(after, elapsed) < 1 else Position(position.phase + 1, 0, elapsed)

    def lr_factor(self, position: Position, elapsed: float = 0.0) -> float:
        """Factor on every learning rate for the step to do next, taken at the middle of that step."""
        return self.factor(position.phase, self._progress(position, position.step + 0.5, elapsed))

    def factor(self, phase: int, progress: float) -> float:
        """Factor on every learning rate when `progress` in [0, 1] of phase number `phase` is over.

        Warm-up times shape. Warm-up is linear over the first `warmup` of the plan's epochs. The shape leads from 1
        to `switch_lr` over all phases but the last (the constant one stays at 1), then straight to `final_lr`; with
        one phase alone it leads from 1 to `final_lr` (the constant one stays at 1).
        """
        epochs_done = self.phases[phase].first_epoch + progress * self.phases[phase].epochs
        warmup_epochs = self.recipe.warmup * self.epochs
        warmup = min(1.0, epochs_done / warmup_epochs) if warmup_epochs > 0 else 1.0
        last = self.phases[-1]
        if last.index == 0:
            return warmup * self._shape(progress, self.recipe.final_lr)
        if phase < last.index:
            return warmup * self._shape(epochs_done / last.first_epoch, self.recipe.switch_lr)
        start = self._shape(1.0, self.recipe.switch_lr)
        return warmup * (start + progress * (self.recipe.final_lr - start))

    def _shape(self, progress: float, end: float) -> float:
        match self.recipe.shape:
            case "constant":
                return 1.0
            case "linear":
                return 1 + progress * (end - 1)
            case "cosine":
                return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2

    def _progress(self, position: Position, steps: float, elapsed: float) -> float:
        phase = self.phases[position.phase]
        by_steps = steps / (phase.epochs * self.steps_per_epoch)
        if self.budget is None:
            return min(1.0, by_steps)
        cost_left = sum(later.cost for later in self.phases[position.phase :])
        seconds = (self.budget - position.started) * phase.cost / cost_left
        by_time = (elapsed - position.started) / seconds if seconds > 0 else 1.0
        return min(1.0, max(by_steps, by_time))
