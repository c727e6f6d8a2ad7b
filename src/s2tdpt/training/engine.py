"""The training loop: from a recipe to a folder with weights, log and metrics, whatever interrupts it."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from s2tdpt.errors import CheckpointError, TrainingError, TrainingInterrupted
from s2tdpt.training import checkpoint, folder
from s2tdpt.training.distributed import join
from s2tdpt.training.interrupt import Interrupt
from s2tdpt.training.logging import Board, Progress, clock, describe, log_text
from s2tdpt.training.numerics import numerics
from s2tdpt.training.recipe import Recipe
from s2tdpt.training.schedule import Position
from s2tdpt.training.setup import Setup
from s2tdpt.training.state import State, Tally, restore, save
from s2tdpt.training.step import memory_advice, reestimate_batch_norm, set_time_steps

NORM_BATCHES = 20  # batches behind the BatchNorm statistics after a change of T


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | None = None,
    data_root: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train as `recipe` says into the folder `out`, and return its metrics (accuracies as fractions).

    Writes recipe.yaml, log.csv, metrics.json, model.safetensors + model.json, checkpoint/ and, where TensorBoard is
    installed, tensorboard/. `resume=True` goes on after any interruption: on the CPU to bit-identical weights; a
    finished run returns its metrics. Under `torchrun` each process takes `data.batch_size` images a step.
    Raises `TrainingError` (not finite, out of memory, interrupted, folder in use) and `CheckpointError` (disk).
    """
    born = time.monotonic()
    where = Path(out)
    with join(device) as ranks, numerics(ranks.device, recipe.deterministic):
        if ranks.device.type == "cuda":  # the metrics have this run's peak
            torch.cuda.reset_peak_memory_stats(ranks.device)
        metrics = ranks.on_main(lambda: folder.open_run(where, recipe, resume))
        if any(ranks.from_main([float(metrics is not None)])):
            return metrics or {}
        with Interrupt() as interrupt:
            begun = (where / folder.CHECKPOINT / checkpoint.LATEST).exists()
            setup = Setup.build(recipe, ranks, Path(data_root) if data_root is not None else None, progress, begun)
            run = Run(setup, where, interrupt, born, progress)
            try:
                return run.run()
            finally:
                run.close()


class Run:
    """One run, from its folder's checkpoint or from the beginning."""

    def __init__(self, setup: Setup, out: Path, interrupt: Interrupt, born: float, progress: bool) -> None:
        self.setup, self.out, self.interrupt = setup, out, interrupt
        self.recipe, self.ranks, self.schedule = setup.recipe, setup.ranks, setup.schedule
        self.state = State()
        self.saved: tuple[int, Path] | None = None
        self._results: tuple[int, dict[str, Any]] | None = None
        self._restore()
        self._born = born - self.state.elapsed
        if self.saved is None:  # the first phase begins once everything is built and compiled
            self.state.elapsed = self.ranks.from_main([self._elapsed()])[0]
            self.state.position = Position(started=self.state.elapsed)
        next_epoch = self.state.history[-1]["epoch"] + 1 if self.state.history else 1
        self.board = Board(out / folder.BOARD, next_epoch) if self.ranks.is_main else None
        self.progress = Progress(self.schedule.total_steps, self.state.step, progress and self.ranks.is_main)
        self._saved_at = self._mark = time.monotonic()

    def run(self) -> dict[str, Any]:
        """All epochs that are left, then the results."""
        while True:
            if self._epoch_is_over():
                self._end_epoch()
            if self.schedule.finished(self.state.position):
                self._save()
                return self._hand_out()
            with memory_advice(self.recipe, "training"):
                self._enter_phase()
                self._train_epoch()

    def close(self) -> None:
        self.setup.train_step.close()
        self.progress.close()
        if self.board is not None:
            self.board.close()

    def _train_epoch(self) -> None:
        state, setup = self.state, self.setup
        epoch, step = self.schedule.epoch(state.position)
        if step == 0:
            state.tally = Tally(epoch)
        setup.model.train()
        self._mark = time.monotonic()
        for at, (x, target) in enumerate(setup.batches(epoch, step), start=step):
            factor = self.schedule.lr_factor(state.position, state.elapsed)
            setup.optimizers.set_lr_factor(factor)
            setup.train_step(x, target, (epoch, at))
            if setup.ema is not None:
                setup.ema.update()
            state.position = self.schedule.advance(state.position, state.elapsed)
            state.step += 1
            state.tally.steps += 1
            state.tally.lr = factor * self.recipe.optimizer.lr
            self._pause()
            if self._epoch_is_over():
                break

    def _enter_phase(self) -> None:
        """At a new T the statistics of BatchNorm shift: measure them anew, and forget the averaged weights."""
        state, setup = self.state, self.setup
        before, state.time_steps = state.time_steps, self.schedule.phases[state.position.phase].time_steps
        set_time_steps(setup.model, state.time_steps)
        if before in (0, state.time_steps):
            return
        epoch, _ = self.schedule.epoch(state.position)
        if skipped := epoch - state.history[-1]["epoch"]:
            self.progress.say(f"max_minutes ends T={before} here, {skipped} of its epochs are left out")
        batches = (x for x, _ in islice(setup.batches(epoch), NORM_BATCHES))
        reestimate_batch_norm(setup.model, batches, self.ranks.device, self.recipe.precision)
        if setup.ema is not None:
            setup.ema.restart()

    def _epoch_is_over(self) -> bool:
        position, tally = self.state.position, self.state.tally
        if not tally.steps:
            return False
        return self.schedule.finished(position) or self.schedule.epoch(position)[0] != tally.epoch

    def _end_epoch(self) -> None:
        self._look()
        state, tally = self.state, self.state.tally
        key = f"{self.setup.evaluated_on}_top1"
        row: dict[str, Any] = {
            "epoch": tally.epoch + 1,
            "time_steps": state.time_steps,
            "lr": tally.lr,
            "train_loss": tally.loss_sum / tally.steps,
            key: None,
            "ema_top1": None,
            "seconds": tally.seconds,
            "images_per_second": self._images_per_second(),
            "attention_firing_rate": None,
        }
        if (tally.epoch + 1) % self.recipe.eval_every == 0 or self.schedule.finished(state.position):
            results = self._evaluate()
            row[key] = results["last"]["top1"]
            row["ema_top1"] = results["ema"]["top1"] if "ema" in results else None
            rates = results["rates"]["attention_firing_rate"]
            row["attention_firing_rate"] = sum(rates) / len(rates) if rates else None
        state.history.append(row)
        state.tally = Tally()
        if self.board is not None:
            folder.write_file(self.out / folder.LOG, log_text(state.history))
            self.board.add(row)
        self.progress.say(describe(row, self.schedule.epochs))

    def _evaluate(self) -> dict[str, Any]:
        if self._results is None or self._results[0] != self.state.step:
            set_time_steps(self.setup.model, self.state.time_steps)  # a run resumed here has not entered a phase
            if self.recipe.norm_batches and self.schedule.finished(self.state.position) and not self.state.measured:
                self.setup.measure_norms()
                self.state.measured = True
            self._results = self.state.step, self.setup.evaluate(measured=self.state.measured)
        return self._results[1]

    def _hand_out(self) -> dict[str, Any]:
        self.state.elapsed = self._elapsed()
        results = self._evaluate()
        return folder.write_results(self.out, self.setup, asdict(self.state), results)

    def _pause(self) -> None:
        """Between two steps: look at the clock, at the losses now and then, and save when it is time."""
        if not (self.ranks.world_size == 1 or self.setup.train_step.full or self._epoch_is_over()):
            return  # ranks can agree on what to do only where they meet
        due = time.monotonic() - self._saved_at >= 60 * self.recipe.checkpoint_every_minutes
        self.state.elapsed, signal, due = self.ranks.from_main([self._elapsed(), self.interrupt.signal, due])
        if signal or due:
            self._save()
        elif self.setup.train_step.full:
            self._look()
        if signal:
            done = f"step {self.state.step} is saved in {self.out}"
            raise TrainingInterrupted(f"interrupted; {done}: go on with --resume")

    def _look(self) -> None:
        """Fetch the losses of the last steps; stop if one, or a gradient, is not finite."""
        state = self.state
        report = self.setup.train_step.take_report()
        for step, (loss, norm) in enumerate(report, start=state.step - len(report) + 1):
            for name, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise self._diverged(f"the {name} is {value} at step {step}")
            state.tally.loss_sum += loss
        now = time.monotonic()
        state.tally.seconds += now - self._mark
        self._mark = now
        if report:
            title = f"epoch {state.tally.epoch + 1}/{self.schedule.epochs} T={state.time_steps}"
            speed, left = f"{self._images_per_second():,.0f}", clock(self._seconds_left())
            shown = {"loss": f"{report[-1][0]:.3f}", "img/s": speed, "lr": f"{state.tally.lr:.1e}", "left": left}
            self.progress.update(len(report), title, shown)

    def _diverged(self, what: str) -> TrainingError:
        good = f"last good checkpoint: step {self.saved[0]}, {self.saved[1]}" if self.saved else "no checkpoint yet"
        return TrainingError(
            f"{what} (epoch {self.state.tally.epoch + 1}, T = {self.state.time_steps}); {good}; start anew with a "
            f"lower optimizer.lr (now {self.recipe.optimizer.lr:g}) or with optimizer.clip_grad_norm"
        )

    def _save(self) -> None:
        self._look()
        setup = self.setup
        if not setup.train_step.finite_weights():
            raise self._diverged(f"a weight is not finite after step {self.state.step}")
        path = save(self.out / folder.CHECKPOINT, setup, self.state)
        self.saved = self.state.step, path or self.out
        self._saved_at = self._mark = time.monotonic()

    def _restore(self) -> None:
        found = checkpoint.load_latest(self.out / folder.CHECKPOINT)
        step = found.meta["step"] if found is not None else -1
        if self.ranks.from_main([step]) != [step]:
            raise CheckpointError(f"rank 0 sees another checkpoint in {self.out}: it has to be one shared folder")
        if found is None:
            return
        self.state = restore(found, self.setup)
        self.saved = step, found.path

    def _elapsed(self) -> float:
        return time.monotonic() - self._born

    def _images_per_second(self) -> float:
        images = self.state.tally.steps * self.recipe.data.batch_size * self.ranks.world_size
        return images / max(self.state.tally.seconds, 1e-9)

    def _seconds_left(self) -> float:
        """By the speed of this epoch and the cost of the others; at most what the clock leaves."""
        state = self.state
        if self.schedule.finished(state.position):
            return 0.0
        ahead = self.schedule.phases[state.position.phase :]
        cost = sum(phase.cost for phase in ahead) * self.schedule.steps_per_epoch
        cost -= state.position.step * ahead[0].epoch_cost
        by_steps = cost / ahead[0].epoch_cost * state.tally.seconds / max(state.tally.steps, 1)
        return by_steps if self.schedule.budget is None else min(by_steps, self.schedule.budget - state.elapsed)
