"""One block of the spiking Transformer: attention and MLP, each adding to the membrane potential."""

from __future__ import annotations

from torch import Tensor, nn

from ..attention import build_attention
from ..normalisation import BatchNorm
from .config import ModelConfig


class SpikingMLP(nn.Module):
    """SN-Linear(D→rD)-BN-SN-Linear(rD→D)-BN on the membrane potential [T, B, N, D]: what it changes by."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.embed_dim
        self.neuron1 = config.make_neuron()
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.norm1 = BatchNorm(hidden)
        self.neuron2 = config.make_neuron()
        self.fc2 = nn.Linear(hidden, config.embed_dim)
        self.norm2 = BatchNorm(config.embed_dim)

    def forward(self, u: Tensor) -> Tensor:
        hidden = self.norm1(self.fc1(self.neuron1(u)))
        return self.norm2(self.fc2(self.neuron2(hidden)))


class Block(nn.Module):
    """U ← U + attention(SN(U)), then U ← U + MLP(U), for U [T, B, N, D]: every linear layer sees binary spikes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.neuron = config.make_neuron()
        self.attn = build_attention(
            config.attention,
            config.embed_dim,
            config.num_heads,
            window=config.window,
            gain=config.gain,
            neuron=config.make_neuron,
        )
        self.mlp = SpikingMLP(config)

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.attn(self.neuron(u))
        return u + self.mlp(u)
