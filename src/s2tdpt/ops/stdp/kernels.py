"""What the Triton kernels of STDP attention share: the window, and loading spikes [Z, H, N, D_h] of any strides.

`window` is [H, 6]: a_plus, a_minus, the exponents for one count t_max/(D_h·tau_plus)·log2(e) and
t_max/(D_h·tau_minus)·log2(e), and the levels of both branches (the offset, in the paper's window).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _window_constants(window, head):
    """The six of one head, in the order above."""
    at = window + head * 6
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def _weights(m, window, head):
    """w and ∂w/∂m at m = r_Q − r_K (eqs 19-22): the exponent falls with |m| on both sides; at ties, depression."""
    a_plus, a_minus, e_plus, e_minus, level_plus, level_minus = _window_constants(window, head)
    query_first = m > 0
    f = tl.where(query_first, a_plus, a_minus) * tl.exp2(tl.where(query_first, -m * e_plus, m * e_minus))
    slope = -0.6931471805599453 * f * tl.where(query_first, e_plus, e_minus)
    return tl.where(query_first, f + level_plus, level_minus - f), slope


@triton.jit
def _load_tile(x, base, stride_n, n, d, N, D: tl.constexpr):
    mask = (n < N)[:, None] & (d < D)[None, :]
    return tl.load(x + base + n.to(tl.int64)[:, None] * stride_n + d[None, :], mask=mask, other=0.0).to(tl.float32)
