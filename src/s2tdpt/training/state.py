"""What a run needs to go on, and how it gets into a checkpoint and out again."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s2tdpt.errors import CheckpointError
from s2tdpt.training import checkpoint
from s2tdpt.training.checkpoint import Checkpoint
from s2tdpt.training.compact import COMPACT, expand
from s2tdpt.training.schedule import Position
from s2tdpt.training.setup import Setup


@dataclass
class Tally:
    """What is known of the epoch under way."""

    epoch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0


@dataclass
class State:
    """What a run needs to go on, beside its tensors; `elapsed` is its age in seconds, over all resumptions."""

    step: int = 0
    position: Position = field(default_factory=Position)
    time_steps: int = 0
    elapsed: float = 0.0
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, Any]] = field(default_factory=list)
    inexact_at: list[int] = field(default_factory=list)  # steps at which a compact checkpoint was gone on from
    measured: bool = False  # BatchNorm's statistics are those of the end: see `Recipe.norm_batches`

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> State:
        """From a checkpoint's JSON values, which hold more, and may miss what is newer than they are."""
        values = {key: meta[key] for key in asdict(cls()) if key in meta}
        return cls(**{**values, "position": Position(**values["position"]), "tally": Tally(**values["tally"])})


def save(folder: Path, setup: Setup, state: State) -> Path | None:
    """Write a checkpoint on rank 0, and return its place there; all ranks call it together."""
    tensors = {"model": setup.model.state_dict(), "optimizer": setup.optimizers.state_dict()}
    if setup.ema is not None:
        tensors["ema"] = setup.ema.state_dict()
    meta = {**asdict(state), "steps_per_epoch": setup.loader.steps_per_epoch, "recipe": setup.recipe.to_dict()}
    if setup.distillation is not None:
        meta["distill"] = setup.distillation.source
    if setup.initial is not None:
        meta["initial_weights"] = setup.initial
    return setup.ranks.on_main(lambda: checkpoint.save(folder, tensors, meta))


def restore(found: Checkpoint, setup: Setup) -> State:
    """Put a checkpoint's tensors into model, optimisers and average. `CheckpointError` if they are of another run."""
    before, now = found.meta["steps_per_epoch"], setup.loader.steps_per_epoch
    if before != now:
        raise CheckpointError(
            f"{found.path} is of a run with {before} steps an epoch, not {now}: resume with the same data and the "
            "same number of processes"
        )
    teacher = None if setup.distillation is None else setup.distillation.source
    if teacher is not None and teacher["sha256"] != found.meta["distill"]["sha256"]:
        before, now = found.meta["distill"]["sha256"], teacher["sha256"]
        raise CheckpointError(
            f"{found.path} was trained with another teacher than {teacher['teacher']} is now (sha256 {before[:12]}…, "
            f"not {now[:12]}…): put that one back, or start anew"
        )
    setup.initial = found.meta.get("initial_weights")
    tensors = expand(found.state)
    setup.model.load_state_dict(tensors["model"])
    setup.optimizers.load_state_dict(tensors["optimizer"])
    if setup.ema is not None:
        setup.ema.load_state_dict(tensors["ema"])
    state = State.from_meta(found.meta)
    if found.meta.get(COMPACT):
        state.inexact_at.append(state.step)
        if setup.ranks.is_main:
            warnings.warn(
                f"{found.path.parent} is compact: the run goes on at step {state.step} from rounded weights and "
                "moments, so not to the very weights that it would have reached",
                stacklevel=2,
            )
    return state
