"""What a run tells: log.csv, TensorBoard where it is installed, and progress on the terminal."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from s2tdpt.training.recipe import Recipe

LINE_EVERY_SECONDS = 30.0
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


def log_text(history: Sequence[Mapping[str, Any]]) -> str:
    """One CSV row an epoch; what was not measured in an epoch is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def clock(seconds: float) -> str:
    """Minutes and seconds for people."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Board:
    """TensorBoard's event files, or nothing where it is not installed."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, row: Mapping[str, Any]) -> None:
        """Plot the numbers of one epoch."""
        if self._writer is not None:
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    self._writer.add_scalar(key, value, row["epoch"])
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def announcement(recipe: Recipe, device: torch.device) -> str:
    """What begins, where: said before anything is compiled, measured or trained."""
    parts = [f"{recipe.name}: {recipe.model.name} on {recipe.data.name}, seed {recipe.seed}"]
    limit = f" within {recipe.max_minutes:g} minutes" if recipe.max_minutes else ""
    parts.append(f"T:epochs {recipe.schedule.time_steps}{limit}")
    parts += [f"from the weights of {recipe.initial_weights}"] if recipe.initial_weights else []
    parts += [f"taught by {recipe.distill.teacher}"] if recipe.distill else []
    parts.append(f"{device} in {recipe.precision}")
    if device.type == "cpu" and recipe.precision == "bfloat16":
        parts[-1] += ", which most CPUs compute slowly (--set precision=float32)"
    return ", ".join(parts)


class Progress:
    """A bar over all steps of a run on a terminal; elsewhere a line now and then. `enabled=False` is silent."""

    def __init__(self, total_steps: int, done: int, enabled: bool) -> None:
        self._enabled = enabled
        self._terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=done, disable=not self._terminal, bar_format=BAR)
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """One line, above the bar."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)
            self._last_line = time.monotonic()

    def update(self, steps: int, title: str, values: Mapping[str, str]) -> None:
        """Move on by `steps`; `values` stand beside the bar."""
        self._bar.set_description(title, refresh=False)
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(steps)
        if not self._terminal and time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self.say(f"{title}  " + "  ".join(f"{key} {value}" for key, value in values.items()))

    def close(self) -> None:
        self._bar.close()


def describe(row: Mapping[str, Any], epochs: int) -> str:
    """One epoch as a line for people."""
    parts = [f"epoch {row['epoch']}/{epochs}", f"T={row['time_steps']}", f"loss {row['train_loss']:.4f}"]
    for key in ("test_top1", "holdout_top1", "ema_top1"):
        if row.get(key) is not None:
            parts.append(f"{key} {100 * row[key]:.2f} %")
    if row.get("attention_firing_rate") is not None:
        parts.append(f"attention fires {100 * row['attention_firing_rate']:.1f} %")
    parts += [f"lr {row['lr']:.2e}", f"{row['images_per_second']:,.0f} images/s"]
    return "  ".join(parts)
