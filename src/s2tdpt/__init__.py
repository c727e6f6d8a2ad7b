"""Spiking vision Transformers whose self-attention is spike-timing-dependent plasticity."""

__version__ = "0.1.0"
