"""Spiking self-attention: one mechanism a file behind one signature."""

from __future__ import annotations

from ..errors import ModelError
from ..ops.stdp import StdpWindow
from .base import NeuronFactory, SpikingSelfAttention
from .controls import IdentityAttention, MeanAttention, RandomAttention
from .stdp import STDPAttention

__all__ = [
    "ATTENTIONS",
    "IdentityAttention",
    "MeanAttention",
    "RandomAttention",
    "STDPAttention",
    "SpikingSelfAttention",
    "build_attention",
]

ATTENTIONS = ("stdp", "mean", "identity", "random")


def build_attention(
    name: str, embed_dim: int, num_heads: int, *, window: StdpWindow, gain: float, neuron: NeuronFactory
) -> SpikingSelfAttention:
    """The attention layer called `name`; `ModelError` names the known ones."""
    match name:
        case "stdp":
            return STDPAttention(embed_dim, num_heads, window=window, gain=gain, neuron=neuron)
        case "random":
            return RandomAttention(embed_dim, num_heads, window=window, gain=gain, neuron=neuron)
        case "mean":
            offset = window.offset
            if isinstance(offset, tuple):
                raise ModelError("attention 'mean' takes one offset for all heads, but the window has one a head")
            return MeanAttention(embed_dim, num_heads, gain=gain, offset=offset, neuron=neuron)
        case "identity":
            return IdentityAttention(embed_dim, num_heads, neuron=neuron)
    raise ModelError(f"attention {name!r} is unknown: use one of {', '.join(ATTENTIONS)}")
