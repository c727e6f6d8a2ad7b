"""Integer products wherever the tests run: without the CPU's instructions for them they are slow, not wrong."""

from __future__ import annotations

import pytest

from s2tdpt.inference import compiled


@pytest.fixture
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit inference is to be had, whatever this CPU's instructions."""
    monkeypatch.setattr(compiled, "integer_obstacle", lambda: None)
