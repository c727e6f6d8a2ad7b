"""What the GPU kernels of STDP attention take; readable where there is no Triton."""

from __future__ import annotations

TILE_TOKENS = 128
"""One tile holds a head's tokens, up to so many."""
FEATURES = 128
"""Features a head, at most: spike counts are stored in 8 bits, and a tile fits into a multiprocessor's memory."""


def fits_tile(tokens: int, features: int, *, half: bool) -> bool:
    """Whether a head is one tile. Exact float32 products are unrolled: compiling large ones would take minutes."""
    return tokens <= TILE_TOKENS and (half or tokens <= 64 or features <= 32)
