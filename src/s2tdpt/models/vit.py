"""The ANN twin: an ordinary Transformer of the same geometry, with real activations and softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, ModelError
from .block import Grid, build_mixer
from .config import ModelConfig
from .stages import build_stem


class Attention(nn.Module):
    """Multi-head softmax attention on tokens [B, N, D]; Q, K, V without bias, as in the spiking model.

    With `qk_norm` each head's queries and keys have their root mean square normalised, so that scores stay bounded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=False)
        head = config.embed_dim // config.num_heads
        self.qk_norm = nn.ModuleList(nn.RMSNorm(head) for _ in "qk") if config.qk_norm else None
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        query, key, value = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm is not None:
            wide = torch.promote_types(x.dtype, torch.float32)
            query, key = (norm(z.to(wide)).to(z.dtype) for norm, z in zip(self.qk_norm, (query, key), strict=True))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(B, N, D))


class TwinBlock(nn.Module):
    """u ← u + attention(LN(u)), then u ← u + MLP(LN(u)), with GELU; before them u ← u + mixer(u) where there is one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.mixer = build_mixer(config, dim, config.mixer)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, config.mlp_ratio * dim), nn.GELU(), nn.Linear(config.mlp_ratio * dim, dim)
        )

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        if self.mixer is not None:
            u = u + self.mixer(u[None], grid)[0]  # as one time step
        u = u + self.attn(self.norm1(u))
        return u + self.mlp(self.norm2(u))


class VisionTransformer(nn.Module):
    """The spiking model's stem with ReLU for neurons, pre-norm blocks, mean over tokens: [B, C, H, W] to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.time_steps = config.time_steps
        self.stem = build_stem(config)
        self.blocks = nn.ModuleList(TwinBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, config.num_classes)

    @property
    def time_steps(self) -> int:
        """An ANN has one step."""
        return 1

    @time_steps.setter
    def time_steps(self, value: int) -> None:
        if value != 1:
            raise ModelError(f"the ANN twin has one time step, not {value}")

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens after the last block, [B, N, D]."""
        if x.ndim != 4:
            raise InputError(f"the ANN twin takes still images [B, C, H, W], got {tuple(x.shape)}")
        u = self.stem(x, 1)[0]
        grid = self.stem.grid(*x.shape[-2:])
        for block in self.blocks:
            u = block(u, grid)
        return u

    def forward_head(self, u: Tensor) -> Tensor:
        """Logits [B, num_classes] of tokens [B, N, D]."""
        return self.head(self.norm(u).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
