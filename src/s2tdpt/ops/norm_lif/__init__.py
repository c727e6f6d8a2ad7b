"""Batch normalisation (+ residual) + LIF over T (+ max-pool) as one operator, forward and backward."""

from .spec import NormLif

__all__ = ["NormLif"]
