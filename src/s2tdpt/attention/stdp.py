"""STDP self-attention (S²TDPSA): plasticity between query and key spikes is the attention; there is no softmax."""

from __future__ import annotations

from torch import Tensor

from ..neurons import LIF
from ..ops.stdp import StdpWindow, stdp_attention
from .base import NeuronFactory, SpikingSelfAttention


class STDPAttention(SpikingSelfAttention):
    """Spiking self-attention with the STDP window of eqs 17-23, a layer for any spiking Transformer.

    `forward(spikes [T, B, N, D])` gives the change of the membrane potential [T, B, N, D]. The scale of eq. 23 is
    gain / N for N tokens: without a softmax it decides whether the neuron after attention can fire at all, so it must
    follow N (gain 8 is 0.125 at the paper's N = 64). The window adds no trainable weight.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        window: StdpWindow | None = None,
        gain: float = 8.0,
        implementation: str = "auto",
        neuron: NeuronFactory = LIF,
    ) -> None:
        super().__init__(embed_dim, num_heads, neuron=neuron)
        self.window = StdpWindow() if window is None else window
        self.gain, self.implementation = gain, implementation

    def mix(self, *parts: Tensor) -> Tensor:
        query, key, value = parts
        scale = self.gain / key.shape[-2]
        return stdp_attention(
            query,
            key,
            value,
            self.window,
            scale=scale,
            implementation=self.implementation,  # pyright: ignore[reportArgumentType]
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, gain={self.gain}, window={self.window}"
