"""The spiking vision Transformer: stem, blocks, head."""

from __future__ import annotations

from numbers import Integral

from torch import Tensor, nn

from s2tdpt.errors import ModelError

from .block import Block
from .config import ModelConfig
from .dispatch import use_fused
from .stages import build_stem


class SpikingTransformer(nn.Module):
    """S²TDPT: images to class scores through `time_steps` steps of binary spikes.

    `model(x)`: x [B, C, H, W], shown at each step, or [T, B, C, H, W]; returns logits [B, num_classes].
    Nothing is remembered between calls. `time_steps` may be assigned at any time, and so may `implementation`: "plain"
    runs module by module, as it reads here; "fused" through fused kernels; "auto" takes those on a GPU.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.time_steps = config.time_steps
        self.implementation = "auto"
        self.stem = build_stem(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(config.embed_dim, config.num_classes)

    @property
    def time_steps(self) -> int:
        """How many steps the model runs."""
        return self._time_steps

    @time_steps.setter
    def time_steps(self, value: int) -> None:
        if not isinstance(value, Integral) or value < 1:
            raise ModelError(f"time_steps must be a whole number, at least 1, not {value!r}")
        self._time_steps = int(value)

    def forward_features(self, x: Tensor) -> Tensor:
        """Membrane potentials after the last block, [T, B, N, D]."""
        if use_fused(self, x):
            from .fused import forward_features  # Triton is there only where there is a GPU

            return forward_features(self, x)
        u = self.stem(x, self.time_steps)
        grid = self.stem.grid(*x.shape[-2:])
        for block in self.blocks:
            u = block(u, grid)
        return u

    def forward_head(self, u: Tensor) -> Tensor:
        """Logits [B, num_classes] of membrane potentials [T, B, N, D]: their mean over steps and tokens, one layer."""
        return self.head(u.mean((0, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
