"""Packed spikes: the T steps of a neuron in the bits of one byte, and 8-bit products that fire straight into them."""

from __future__ import annotations

from .neuron import MAX_STEPS, Constants, pack, unpack

__all__ = ["MAX_STEPS", "Constants", "pack", "unpack"]
