"""The forward pass of a spiking Transformer on a GPU in 8 bits: every neuron is one byte, which holds all its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..attention import STDPAttention
from ..errors import InputError
from ..models.block import Block
from ..models.transformer import SpikingTransformer
from ..neurons import LIF
from ..ops.packed import Constants
from ..ops.packed import triton as ops
from ..ops.packed.triton import Weight
from ..ops.stdp.launch import window_table
from ..ops.stdp.limits import TILE_TOKENS
from .fold import Norm, fold
from .gpu import current_device, too_many
from .synapses import quantised

_GRAPHS = 4


@dataclass(frozen=True)
class _Block:
    qkv: Weight
    qkv_neuron: Constants
    window: Tensor
    gain: float
    heads: int
    mix_neuron: Constants
    proj: Weight
    mlp_neuron: Constants
    fc1: Weight
    fc2_neuron: Constants
    fc2: Weight


class PackedEngine:
    """`engine(x, time_steps)` gives the logits of `model(x)` in evaluation mode; weights are those of now.

    `membrane`: in which precision those between blocks are stored. With float32 nothing but the weights is rounded;
    with half precision those of attention are too.
    """

    def __init__(self, model: SpikingTransformer, *, membrane: torch.dtype = torch.float16) -> None:
        self.device = model.head.weight.device
        self.membrane = membrane
        stem = model.stem
        self.check, self.grid, self.pooled = stem.check, stem.grid, stem.pooled
        conv, norm = cast(nn.Conv2d, stem.conv[0]), cast(Norm, stem.norm[0])
        weight, bias = fold(conv.weight, conv.bias, norm)
        ones = torch.ones_like(bias, dtype=torch.float32)
        self.first = Weight(weight.flatten(1).t().float().contiguous(), ones, bias.float())
        self.convs = [_weight(c, n) for c, n in zip(stem.conv[1:], stem.norm[1:], strict=True)]
        blocks = [cast(Block, block) for block in model.blocks]
        self.blocks = [self._block(block) for block in blocks]
        entries = [Constants.of(cast(LIF, block.neuron)) for block in blocks]
        self.stem_neurons = [*(Constants.of(cast(LIF, neuron)) for neuron in stem.neuron), entries[0]]
        self.next_neurons: list[Constants | None] = [*entries[1:], None]
        self.head = model.head.weight.detach().float(), model.head.bias.detach().float()
        self._recorded: dict[tuple[Any, ...], Callable[[Tensor], Tensor]] = {}

    def refusal(self, x: Tensor, time_steps: int) -> str | None:
        """Why it cannot answer these images, or None."""
        self.check(x)
        height, width = self.grid(*x.shape[-2:])
        if height * width > TILE_TOKENS:
            return f"a head of {height * width} tokens does not fit into one tile of {TILE_TOKENS}"
        return too_many(time_steps if x.ndim == 4 else len(x))

    @torch.no_grad()
    def __call__(self, x: Tensor, time_steps: int) -> Tensor:
        if x.device != self.device:
            raise InputError(f"the images are on {x.device}, the model is on {self.device}")
        x = x.float()
        with torch.autocast(x.device.type, enabled=False), current_device(self.device):
            if not x.is_cuda or torch.cuda.is_current_stream_capturing():
                return self.logits(x, time_steps)
            key = (*x.shape, *x.stride(), time_steps)
            if key not in self._recorded:
                if len(self._recorded) >= _GRAPHS:
                    self._recorded.pop(next(iter(self._recorded)))
                self._recorded[key] = _recorded(lambda images: self.logits(images, time_steps), x)
            return self._recorded[key](x)

    def logits(self, x: Tensor, time_steps: int) -> Tensor:
        """Without a graph."""
        T = time_steps if x.ndim == 4 else x.shape[0]
        spikes, u, tokens = self._embed(x, T)
        half = self.membrane != torch.float32
        for block, next_neuron in zip(self.blocks, self.next_neurons, strict=True):
            qkv = ops.linear(spikes, block.qkv, block.qkv_neuron, T)
            gain = block.gain / tokens
            mixed = ops.stdp(qkv, block.window, gain, block.mix_neuron, block.heads, T, tokens, half=half)
            spikes = ops.linear(mixed, block.proj, block.mlp_neuron, T, u)
            hidden = ops.linear(spikes, block.fc1, block.fc2_neuron, T)
            spikes = ops.linear(hidden, block.fc2, next_neuron, T, u)
        return ops.head(ops.mean(u, tokens), *self.head)

    def _embed(self, x: Tensor, T: int) -> tuple[Tensor, Tensor, int]:
        """Spikes into the first block [B * N, D], membranes [T, B * N, D], and N."""
        neurons = iter(self.stem_neurons)
        last = not self.convs
        rows = x.shape[-4] * x.shape[-2] * x.shape[-1]
        u = self._membranes(T, rows, self.first) if last else None
        spikes = ops.pixels(x, self.first, next(neurons), T, u)
        for i, (conv, neuron) in enumerate(zip(self.convs, neurons, strict=True), start=1):
            if self.pooled[i]:
                spikes = ops.pool(spikes)
            if i == len(self.convs):
                u = self._membranes(T, spikes[..., 0].numel(), conv)
            spikes = ops.conv(spikes, conv, neuron, T, u)
        assert u is not None
        return spikes.flatten(0, 2), u, spikes.shape[1] * spikes.shape[2]

    def _membranes(self, T: int, rows: int, layer: Weight) -> Tensor:
        return torch.empty(T, rows, len(layer.bias), dtype=self.membrane, device=self.device)

    def _block(self, block: Block) -> _Block:
        attn, mlp = cast(STDPAttention, block.attn), block.mlp
        return _Block(
            qkv=_weight(attn.qkv, attn.qkv_norm, attn.qkv_weight),
            qkv_neuron=Constants.of(cast(LIF, attn.qkv_neuron)),
            window=window_table(attn.window, attn.num_heads, attn.head_dim, self.device),
            gain=attn.gain,
            heads=attn.num_heads,
            mix_neuron=Constants.of(cast(LIF, attn.mix_neuron)),
            proj=_weight(attn.proj, attn.proj_norm),
            mlp_neuron=Constants.of(cast(LIF, mlp.neuron1)),
            fc1=_weight(mlp.fc1, mlp.norm1),
            fc2_neuron=Constants.of(cast(LIF, mlp.neuron2)),
            fc2=_weight(mlp.fc2, mlp.norm2),
        )


@torch.no_grad()
def _weight(layer: Any, norm: Any, weight: Tensor | None = None) -> Weight:
    folded, bias = fold(layer.weight if weight is None else weight, layer.bias, cast(Norm, norm))
    levels, scale = quantised(folded)
    if levels.ndim == 4:
        levels = levels.permute(0, 2, 3, 1)
    return Weight(levels.contiguous(), scale, bias.float())


def _recorded(run: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """run(x) as a CUDA graph for images of that shape."""
    with torch.inference_mode(False):  # later images may come in another mode
        given = x.clone(memory_format=torch.preserve_format)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(given)

    def replay(images: Tensor) -> Tensor:
        given.copy_(images)
        graph.replay()
        return out.clone()

    return replay
