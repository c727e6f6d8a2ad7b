"""How exactly numbers are multiplied: while training, and while scoring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def precise(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bfloat16, or none: "float32" leaves everything as it is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def scoring(device: torch.device, precision: str) -> Iterator[None]:
    """`precise`, and in "float32" `exact` too: a spike is decided as on any other device."""
    with precise(device, precision):
        if precision != "float32":
            yield
            return
        with exact():
            yield


@contextmanager
def exact() -> Iterator[None]:
    """No TF32 where CUDA would take it for float32. Undone at the end."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def numerics(device: torch.device, deterministic: bool) -> Iterator[None]:
    """TF32 products and tuned convolutions on CUDA; with `deterministic` only repeatable kernels. Undone at the end."""
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only so
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1:3]
        torch.use_deterministic_algorithms(before[3], warn_only=before[4])
