"""Controls: what does attention add? The layer with constant weights, with none, or with frozen random Q and K."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..neurons import LIF
from .base import NeuronFactory, SpikingSelfAttention
from .stdp import STDPAttention


class MeanAttention(SpikingSelfAttention):
    """Every weight is the offset: STDP attention with a_plus = a_minus = 0 and the same scale. Has no Q and K."""

    parts = ("v",)

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        gain: float = 8.0,
        offset: float = 0.5,
        neuron: NeuronFactory = LIF,
    ) -> None:
        super().__init__(embed_dim, num_heads, neuron=neuron)
        self.gain, self.offset = gain, offset

    def mix(self, *parts: Tensor) -> Tensor:
        (value,) = parts
        total = value.sum(-2, keepdim=True, dtype=torch.promote_types(value.dtype, torch.float32))
        return (self.gain / value.shape[-2] * self.offset * total).to(value.dtype).expand_as(value)


class IdentityAttention(SpikingSelfAttention):
    """Passes V on, with the gain that lets one spike fire; tokens do not exchange anything. Has no Q and K."""

    parts = ("v",)

    @property
    def gain(self) -> float | Tensor:
        """Current of one spike: lifts the mixing neuron from rest to 1 % above its threshold, whatever the rounding."""
        mix: Any = self.mix_neuron
        tau = mix.tau if getattr(mix, "decay_input", False) else 1.0
        return 1.01 * (mix.v_threshold - (mix.v_reset or 0.0)) * tau

    def mix(self, *parts: Tensor) -> Tensor:
        return self.gain * parts[0]


class RandomAttention(STDPAttention):
    """STDP attention whose W_q and W_k stay as they were drawn; only V, the projection and the norms learn."""

    def __init__(self, embed_dim: int, num_heads: int = 8, **options: object) -> None:
        super().__init__(embed_dim, num_heads, **options)  # pyright: ignore[reportArgumentType]
        drawn = self.qkv.weight.detach()
        self.frozen_qk = nn.Buffer(drawn[: 2 * embed_dim].clone())
        self.qkv = nn.Linear(embed_dim, embed_dim, bias=False)

    @property
    def qkv_weight(self) -> Tensor:
        return torch.cat([self.frozen_qk, self.qkv.weight])

    def project(self, spikes: Tensor) -> Tensor:
        return F.linear(spikes, self.qkv_weight)
