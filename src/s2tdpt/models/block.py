"""Blocks of the spiking Transformer: mixer, attention and MLP, each adding to the membrane potential."""

from __future__ import annotations

from torch import Tensor, nn

from ..attention import build_attention
from ..errors import InputError
from ..normalisation import BatchNorm
from .config import ModelConfig

Grid = tuple[int, int]
"""Rows and columns of tokens, which run row by row."""


def as_images(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens [T, B, N, C] as images [T · B, C, h, w], channels last in memory; a view."""
    return tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)


def as_tokens(images: Tensor, time_steps: int) -> Tensor:
    """The inverse of `as_images`."""
    return images.flatten(2).transpose(1, 2).unflatten(0, (time_steps, -1))


class LocalMixer(nn.Module):
    """SN-conv 3x3-BN on the membrane potential [T, B, N, C] over its grid: what it changes by.

    "dwconv" has one filter a channel (Max-Former's mixer of early stages, arXiv 2505.18608), "conv" mixes channels too.
    """

    def __init__(self, config: ModelConfig, width: int, mixer: str) -> None:
        super().__init__()
        self.neuron = config.make_neuron()
        groups = width if mixer == "dwconv" else 1
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.norm = BatchNorm(width)

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        return self.norm(as_tokens(self.conv(as_images(self.neuron(u), grid)), len(u)))


def build_mixer(config: ModelConfig, width: int, mixer: str) -> LocalMixer | None:
    """The mixer of that name; None for "none"."""
    return None if mixer == "none" else LocalMixer(config, width, mixer)


class SpikingMLP(nn.Module):
    """SN-Linear(D→rD)-BN-SN-Linear(rD→D)-BN on the membrane potential [T, B, N, D]: what it changes by."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        hidden = config.mlp_ratio * width
        self.neuron1 = config.make_neuron()
        self.fc1 = nn.Linear(width, hidden)
        self.norm1 = BatchNorm(hidden)
        self.neuron2 = config.make_neuron()
        self.fc2 = nn.Linear(hidden, width)
        self.norm2 = BatchNorm(width)

    def forward(self, u: Tensor) -> Tensor:
        hidden = self.norm1(self.fc1(self.neuron1(u)))
        return self.norm2(self.fc2(self.neuron2(hidden)))


class LocalBlock(nn.Module):
    """U ← U + mixer(U) where there is one, then U ← U + MLP(U): a block of the stages before attention."""

    def __init__(self, config: ModelConfig, width: int, mixer: str) -> None:
        super().__init__()
        self.mixer = build_mixer(config, width, mixer)
        self.mlp = SpikingMLP(config, width)

    def forward(self, u: Tensor, grid: Grid) -> Tensor:
        if self.mixer is not None:
            u = u + self.mixer(u, grid)
        return u + self.mlp(u)


class Block(nn.Module):
    """U ← U + attention(SN(U)), then U ← U + MLP(U), for U [T, B, N, D]: every linear layer sees binary spikes.

    With a mixer in the configuration U ← U + mixer(U) comes first; it has to know the grid of the tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer = build_mixer(config, config.embed_dim, config.mixer)
        self.neuron = config.make_neuron()
        self.attn = build_attention(
            config.attention,
            config.embed_dim,
            config.num_heads,
            window=config.window,
            gain=config.gain,
            neuron=config.make_neuron,
        )
        self.mlp = SpikingMLP(config, config.embed_dim)

    def forward(self, u: Tensor, grid: Grid | None = None) -> Tensor:
        if self.mixer is not None:
            if grid is None:
                raise InputError("a block with a mixer takes the grid of its tokens too: block(u, (rows, columns))")
            u = u + self.mixer(u, grid)
        u = u + self.attn(self.neuron(u))
        return u + self.mlp(u)
