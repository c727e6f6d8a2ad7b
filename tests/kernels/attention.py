"""Windows, and one call of STDP attention beside the equation in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from s2tdpt.ops import StdpWindow, stdp_attention

from .cases import INTERPRETED, ROUNDING, assert_close, noise, spikes

WINDOWS = ("paper's", "asymmetric", "per head", "without a jump")


def make_window(name: str, heads: int) -> StdpWindow:
    if name == "per head":
        part = [h / heads for h in range(heads)]
        return StdpWindow(
            a_plus=tuple(0.3 + 0.3 * p for p in part), tau_minus=tuple(35 - 20 * p for p in part), offset=0.6
        )
    if name == "without a jump":
        return StdpWindow(0.3, 0.6, 12.0, 30.0, jump=False)
    return StdpWindow(0.3, 0.6, 12.0, 30.0, 25.0, 0.5) if name == "asymmetric" else StdpWindow()


def make_spikes(*shape: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """query [..., N, D_h], key and value [..., keys, D_h]."""
    *lead, _, features = shape
    query = spikes(*shape, density=0.4, seed=1, dtype=dtype)
    key, value = (spikes(*lead, keys, features, density=0.5, seed=s, dtype=dtype) for s in (2, 3))
    return query, key, value


def rounding_of(dtype: torch.dtype) -> float:
    """A GPU multiplies half-precision spikes by weights that are rounded to bfloat16."""
    return ROUNDING[dtype if INTERPRETED or dtype == torch.float32 else torch.bfloat16]


def check_attention(inputs: tuple[Tensor, Tensor, Tensor], window: StdpWindow, scale: float = 0.3) -> None:
    """Output and gradients of the kernels are those of the equation."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    got = stdp_attention(*leaves, window, scale=scale, implementation="triton")
    want = stdp_attention(*wide, window, scale=scale, implementation="dense")
    dtype = inputs[2].dtype
    assert got.dtype == dtype
    assert_close(got, want, rounding_of(dtype), "output")
    grad = noise(*got.shape, seed=4, dtype=dtype)
    gradients = torch.autograd.grad(got, leaves, grad)
    for name, g, w in zip("qkv", gradients, torch.autograd.grad(want, wide, grad.double()), strict=True):
        assert g.dtype == dtype
        assert_close(g, w, rounding_of(dtype), f"gradient of {name}")
