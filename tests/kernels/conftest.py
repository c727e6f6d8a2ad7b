"""Fresh memory that the kernels get is poisoned and fenced, so that what is not written, or written beside, shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

FENCE = 64  # elements on both sides: keeps the alignment that the compiler may count on
SENTINEL = 85


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.empty` and its kin give NaN (integers: 85) with a fence around; a fence written to fails the test."""
    real_empty = torch.empty
    buffers: list[Tensor] = []

    def poisoning(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            wanted = real(*args, **kwargs)
            if torch.compiler.is_compiling() or type(wanted) is not Tensor or wanted.is_meta or wanted.numel() == 0:
                return wanted
            span = 1 + sum((n - 1) * s for n, s in zip(wanted.shape, wanted.stride(), strict=True))
            buffer = real_empty(span + 2 * FENCE, dtype=wanted.dtype, device=wanted.device).fill_(poison(wanted.dtype))
            if not (wanted.is_cuda and torch.cuda.is_current_stream_capturing()):  # then nothing has run yet
                buffers.append(buffer)
            fresh = real_empty(0, dtype=wanted.dtype, device=wanted.device)
            return fresh.set_(buffer.untyped_storage(), FENCE, wanted.shape, wanted.stride())

        return allocate

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))
    yield
    for buffer in buffers:
        fences = torch.cat([buffer[:FENCE], buffer[-FENCE:]])
        intact = fences.isnan() if buffer.is_floating_point() else fences == poison(buffer.dtype)
        size = len(buffer) - 2 * FENCE
        assert bool(intact.all()), f"a kernel wrote beside a {buffer.dtype} tensor of {size} elements"


def poison(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else SENTINEL


@pytest.fixture(autouse=True, scope="session")
def surroundings() -> None:
    """Convolutions and products on a GPU in float32, not TF32; the compiler learns torch's functions unpatched."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.compile(torch.empty, backend="eager")(1)
