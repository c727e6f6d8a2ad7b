"""Ctrl-C and SIGTERM, heard between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

HEARD = b"\ninterrupted: the step under way is finished and saved; once more ends at once\n"


class Interrupt:
    """Within a `with` block: the first SIGINT or SIGTERM sets `signal` to its number, the second one ends at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        os.write(2, HEARD)  # not print: the signal may come while something else prints
