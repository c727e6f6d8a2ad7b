"""What every spiking self-attention shares: projections to spikes, heads, a neuron after the mixing, a projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from ..errors import InputError
from ..neurons import LIF
from ..normalisation import BatchNorm

NeuronFactory = Callable[..., nn.Module]


class SpikingSelfAttention(nn.Module, ABC):
    """BN(Linear(SN(mix(q, k, v)))), q, k, v = SN(BN(W s)): eqs 14-16 and 23. `mix` is the mechanism.

    `forward(spikes [T, B, N, D])` returns the change of the membrane potential [T, B, N, D]; the caller adds it.
    `neuron(**kwargs)` makes the spiking neurons; the one after the mixing, `mix_neuron`, has threshold 0.5.
    """

    parts = ("q", "k", "v")
    """Which projections the mechanism has; those that it cannot use are not created."""

    def __init__(self, embed_dim: int, num_heads: int = 8, *, neuron: NeuronFactory = LIF) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"{type(self).__name__}: embed_dim {embed_dim} does not divide into {num_heads} heads")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        width = len(self.parts) * embed_dim
        self.qkv = nn.Linear(embed_dim, width, bias=False)
        self.qkv_norm = BatchNorm(width)
        self.qkv_neuron = neuron()
        self.mix_neuron = neuron(v_threshold=0.5)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_norm = BatchNorm(embed_dim)

    @abstractmethod
    def mix(self, *parts: Tensor) -> Tensor:
        """Current into `mix_neuron` [T, B, H, N, D_h] from the spikes of `parts`, each [T, B, H, N, D_h]."""

    @property
    def qkv_weight(self) -> Tensor:
        """W of all parts, [len(parts) · D, D], as `project` multiplies it."""
        return self.qkv.weight

    def project(self, spikes: Tensor) -> Tensor:
        """W s of all parts at once: [T, B, N, len(parts) · D]."""
        return self.qkv(spikes)

    def forward(self, spikes: Tensor) -> Tensor:
        if spikes.ndim != 4 or spikes.shape[-1] != self.embed_dim:
            name, got = type(self).__name__, tuple(spikes.shape)
            raise InputError(f"{name} takes spikes [T, B, N, {self.embed_dim}], got {got}")
        T, B, N, D = spikes.shape
        fired = self.qkv_neuron(self.qkv_norm(self.project(spikes)))
        heads = fired.view(T, B, N, -1, self.num_heads, self.head_dim).permute(3, 0, 1, 4, 2, 5)
        mixed = self.mix(*heads.unbind(0)).transpose(2, 3).reshape(T, B, N, D)
        return self.proj_norm(self.proj(self.mix_neuron(mixed)))
