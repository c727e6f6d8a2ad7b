"""Whether Triton's kernels can run."""

from __future__ import annotations

import importlib.util
import os

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Looked up once: `torch.compile` cannot trace the search."""


def obstacle(on_cuda: bool) -> str | None:
    """Why no kernel can take tensors that are on a GPU or not, or None."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if not (on_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return "it needs a CUDA device"
    return None
