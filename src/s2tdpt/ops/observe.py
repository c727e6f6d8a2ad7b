"""Listeners that see every call of this package's operators: the energy counter and the attention maps use them.

Operators may be fused into kernels that no dispatch mode sees into, so each announces itself, once, before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Listener = Callable[[str, dict[str, Any]], None]

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("s2tdpt_listeners", default=())
_depth: ContextVar[int] = ContextVar("s2tdpt_operator_depth", default=0)


@contextmanager
def observe(listener: Listener) -> Iterator[None]:
    """Call `listener(name, info)` for each operator called inside the `with` block (in this thread, uncompiled)."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def listening() -> bool:
    """Whether anybody listens."""
    return bool(_listeners.get())


def inside() -> bool:
    """Whether the body of an observed operator is running: what it does inside has been announced already."""
    return _depth.get() > 0


@contextmanager
def _announced(name: str, info: dict[str, Any]) -> Iterator[None]:
    token = _depth.set(_depth.get() + 1)
    try:
        if _depth.get() == 1:
            for listener in _listeners.get():
                listener(name, info)
        yield
    finally:
        _depth.reset(token)


def call(name: str, info: dict[str, Any], body: Callable[[], Any]) -> Any:
    """Run `body()`, announced as `name` to the listeners, if there are any."""
    if torch.compiler.is_compiling() or not _listeners.get():
        return body()
    with _announced(name, info):
        return body()
