"""Errors for people: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class S2tdptError(Exception):
    """Base of every error that a user can mend; the command line prints it as one line and exits with 2."""


class InputError(S2tdptError, ValueError):
    """A tensor, shape or spike train that an operator cannot take."""


class DataError(S2tdptError):
    """A picture, archive or data folder that cannot be read."""


class RecipeError(S2tdptError):
    """A recipe with an unknown key, a wrong type or an impossible value."""


class ModelError(S2tdptError):
    """An unknown model, or weights that do not fit it."""


class CheckpointError(S2tdptError):
    """A checkpoint that cannot be written, or cannot be trusted."""


class TrainingError(S2tdptError):
    """Training that cannot go on: a loss that is not finite, or a device out of memory."""


class TrainingInterrupted(TrainingError):
    """Training stopped by a signal between two steps, all of it saved."""


class MissingExtraError(S2tdptError, ImportError):
    """An optional dependency that is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingExtraError(f"{name} cannot be imported ({error}): pip install 's2tdpt[{extra}]'") from error
