"""The Triton kernel of `add_constant`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_constant_kernel(x, out, constant, n, BFLOAT16: tl.constexpr, BLOCK: tl.constexpr):
    """out = x + constant over n elements; in bfloat16 rounded as in reference.py."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offset, mask=offset < n).to(tl.float32) + constant
    if BFLOAT16:
        place = offset.to(tl.uint32)
        place = (place ^ (place >> 16)) * 0x21F0AAAD
        place = (place ^ (place >> 15)) * 0x735A2D97
        bits = value.to(tl.uint32, bitcast=True) + ((place ^ (place >> 15)) & 0xFFFF)
        rounded = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, rounded, value)  # NaN is all ones on a GPU: one more would be -0
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=offset < n)
