"""What the launchers of the STDP kernels share."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from .window import StdpWindow

BLOCK = 1024
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=64)
def window_table(window: StdpWindow, num_heads: int, head_dim: int, device: torch.device) -> Tensor:
    """The window's constants as the kernels read them: float32 [H, 6]; kept, since a CUDA graph cannot copy them."""
    like = torch.empty(0, dtype=torch.float64)
    _, _, tau_plus, tau_minus, t_max, _ = window.constants(like)
    a_plus, a_minus, level_plus, level_minus = window.branches(like)
    per_count = t_max / head_dim * math.log2(math.e)
    columns = (a_plus, a_minus, per_count / tau_plus, per_count / tau_minus, level_plus, level_minus)
    table = torch.cat([c.reshape(-1, 1).expand(num_heads, 1) for c in columns], 1)
    with torch.inference_mode(False):  # kept for later calls, which may train
        return table.to(device=device, dtype=torch.float32).contiguous()


def width(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def dot(dtype: torch.dtype) -> dict[str, Any]:
    """How products are taken: in bfloat16 for half-precision spikes, exactly for float32."""
    half = dtype in (torch.bfloat16, torch.float16) and not INTERPRETED
    return {"DOT": triton.language.bfloat16 if half else triton.language.float32, "PRECISION": "ieee"}


def like_tokens(x: Tensor) -> Tensor:
    """An empty [Z, H, N, D_h] whose heads merge without a copy."""
    Z, H, N, D = x.shape
    return x.new_empty(Z, N, H, D).transpose(1, 2)


def last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
