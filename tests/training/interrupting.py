"""A run that ends unexpectedly."""

from __future__ import annotations

import pytest
from torch import Tensor

from s2tdpt.training.step import TrainStep


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is interrupted as it enters this step."""
    calls: list[int] = []
    original = TrainStep.__call__

    def count(self: TrainStep, *arguments: Tensor) -> None:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", count)
