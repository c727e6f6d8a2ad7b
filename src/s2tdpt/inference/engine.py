"""The forward pass of a spiking Transformer on a CPU: folded weights, all steps in one go, few passes over memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import SpikingSelfAttention
from ..errors import InputError
from ..models.block import Block, Grid, LocalBlock, LocalMixer, SpikingMLP
from ..models.config import ModelConfig
from ..models.dispatch import NORMS, unknown_part
from ..models.stages import Downsample, HierarchicalStem, Stage
from ..models.stem import Stem
from ..models.transformer import SpikingTransformer
from ..neurons import LIF, PLIF
from .fold import Norm, fold
from .membrane import Membrane
from .mixing import MIXED, Mixing, mixing
from .synapses import FloatSynapse, IntegerSynapse, Places, Synapse

PLANES = {"int8": 1, "int16": 2}
"""8-bit planes of weights of each integer precision."""
_KNOWN = {Stem, Block, SpikingMLP, LIF, PLIF, nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.ModuleList, *NORMS, *MIXED}
_HIERARCHY = {HierarchicalStem, Stage, Downsample, LocalBlock, LocalMixer}
_ELEMENTS = 1 << 22
"""Of the widest layer at one step: more images at once would only leave the caches."""


def obstacle(model: nn.Module) -> str | None:
    """Why this model has no engine on a CPU, or None."""
    if (unknown := structure(model, _HIERARCHY)) is not None:
        return unknown
    devices, dtypes = ({getattr(p, kind) for p in model.parameters()} for kind in ("device", "dtype"))
    if devices != {torch.device("cpu")}:
        return "the model is not on the CPU"
    if dtypes not in ({torch.float32}, {torch.float64}):
        return "the weights are not all in float32 or all in float64"
    return None


def structure(model: nn.Module, also: Iterable[type[nn.Module]] = ()) -> str | None:
    """What an engine that knows the plain geometries, and `also` these parts, does not know of this model, or None."""
    if type(model) is not SpikingTransformer:
        return f"{type(model).__name__} is not a spiking Transformer of this package"
    return unknown_part(model, {*_KNOWN, *also}, "it does not know")


@dataclass(frozen=True)
class _Mixer:
    neuron: Membrane
    conv: Synapse


@dataclass(frozen=True)
class _Attention:
    neuron: Membrane
    qkv: Synapse
    qkv_neuron: Membrane
    mix: Mixing
    mix_neuron: Membrane
    proj: Synapse


@dataclass(frozen=True)
class _Block:
    mixer: _Mixer | None
    attention: _Attention | None
    neuron: Membrane
    fc1: Synapse
    hidden_neuron: Membrane
    fc2: Synapse


@dataclass(frozen=True)
class _Downsample:
    neuron: Membrane
    conv1: Synapse
    neuron1: Membrane
    conv2: Synapse
    shortcut: Synapse


class Engine:
    """`engine(x, time_steps)` gives the logits of `model(x)` in evaluation mode; weights are those of now.

    Membranes and currents have their sign turned (see `membrane`); lists hold one tensor a time step.
    """

    def __init__(self, model: SpikingTransformer, precision: str) -> None:
        self.planes = PLANES.get(precision, 0)
        self.dtype = torch.float32 if self.planes else model.head.weight.dtype
        self.spikes = torch.uint8 if self.planes else self.dtype
        self.answers = model.head.weight.dtype
        stem = model.stem
        self.check, self.pooled = stem.check, stem.pooled
        self.widest = partial(widest, model.config)
        weight, bias = self._folded(stem.conv[0], stem.norm[0])
        self.first = FloatSynapse(weight, bias, self.dtype)  # pixels are no spikes
        self.convs = [self._synapse(c, n) for c, n in zip(stem.conv[1:], stem.norm[1:], strict=True)]
        self.neurons = [Membrane.of(cast(LIF, neuron)) for neuron in stem.neuron]
        self.parts: list[_Block | _Downsample] = []
        for stage in cast(Iterable[Stage], stem.stages) if isinstance(stem, HierarchicalStem) else ():
            self.parts += [self._block(cast(LocalBlock, block)) for block in stage.blocks]
            self.parts.append(self._down(stage.down))
        self.parts += [self._block(cast(Block, block)) for block in model.blocks]
        self.head = -model.head.weight.detach().to(self.dtype), model.head.bias.detach().to(self.dtype, copy=True)

    def refusal(self, x: Tensor, time_steps: int) -> str | None:
        """Why it cannot answer these images, or None: it always can."""
        return None

    @torch.no_grad()
    def __call__(self, x: Tensor, time_steps: int) -> Tensor:
        if x.device.type != "cpu":
            raise InputError(f"the images are on {x.device}, this model was compiled for the CPU: compile it there")
        self.check(x)
        x = x.to(self.dtype)
        static = x.ndim == 4
        images = max(1, _ELEMENTS // self.widest(*x.shape[-2:]))
        with torch.autocast("cpu", enabled=False):
            logits = [self._logits(part, time_steps) for part in x.split(images, dim=0 if static else 1)]
        return torch.cat(logits).to(self.answers)

    def _logits(self, x: Tensor, time_steps: int) -> Tensor:
        u, grid = self._embed(x, time_steps)
        for part in self.parts:
            if isinstance(part, _Downsample):
                u, grid = self._shrink(part, u, grid), (grid[0] // 2, grid[1] // 2)
            else:
                u = self._advance(part, u, grid)
        mean = torch.stack([a.unflatten(0, (-1, grid[0] * grid[1])).mean(1) for a in u]).mean(0)
        return F.linear(mean, *self.head)

    def _embed(self, x: Tensor, time_steps: int) -> tuple[list[Tensor], Grid]:
        """Membranes [B · N, D] of each step after the first convolutions, and the grid of the N."""
        u = [self._pixels(x)] * time_steps if x.ndim == 4 else [self._pixels(image) for image in x]
        if not self.convs:
            u = [current.clone() for current in u]  # those of a still image are one tensor, and blocks add to u
        else:
            spikes = self.neurons[0].fire(u, self.spikes, keep=True)
            for pooled, conv, neuron in zip(self.pooled[1:], self.convs, self.neurons[1:], strict=False):
                spikes = neuron.fire_through(conv, [_pool(s) for s in spikes] if pooled else spikes, self.spikes)
            u = [self.convs[-1](_pool(s) if self.pooled[-1] else s) for s in spikes]
        return [a.flatten(0, 2) for a in u], (u[0].shape[1], u[0].shape[2])

    def _pixels(self, x: Tensor) -> Tensor:
        return self.first(x.permute(0, 2, 3, 1))

    def _advance(self, block: _Block, u: list[Tensor], grid: Grid) -> list[Tensor]:
        """U + mixer, + attention, + MLP."""
        if block.mixer is not None:
            spikes = block.mixer.neuron.fire(u, self.spikes, keep=True)
            add = block.mixer.conv.add_to
            u = [add(_images(a, grid), _images(s, grid)).flatten(0, 2) for a, s in zip(u, spikes, strict=True)]
        if block.attention is not None:
            u = self._attend(block.attention, u, grid[0] * grid[1])
        spikes = block.neuron.fire(u, self.spikes, keep=True)
        spikes = block.hidden_neuron.fire_through(block.fc1, spikes, self.spikes)
        return [block.fc2.add_to(a, s) for a, s in zip(u, spikes, strict=True)]

    def _attend(self, attention: _Attention, u: list[Tensor], tokens: int) -> list[Tensor]:
        spikes = attention.neuron.fire(u, self.spikes, keep=True)
        spikes = attention.qkv_neuron.fire_through(attention.qkv, spikes, self.spikes)
        mixed = [attention.mix(s, tokens) for s in spikes]
        spikes = attention.mix_neuron.fire(mixed, self.spikes, keep=False)
        return [attention.proj.add_to(a, s) for a, s in zip(u, spikes, strict=True)]

    def _shrink(self, down: _Downsample, u: list[Tensor], grid: Grid) -> list[Tensor]:
        """Membranes on half the grid, from the spikes of U by two ways."""
        spikes = [_images(s, grid) for s in down.neuron.fire(u, self.spikes, keep=False)]
        pooled = [_pool(s) for s in down.neuron1.fire_through(down.conv1, spikes, self.spikes)]
        return [down.shortcut.add_to(down.conv2(p), s).flatten(0, 2) for p, s in zip(pooled, spikes, strict=True)]

    def _block(self, block: Block | LocalBlock) -> _Block:
        mixer, mlp = block.mixer, block.mlp
        return _Block(
            mixer=mixer and _Mixer(Membrane.of(cast(LIF, mixer.neuron)), self._synapse(mixer.conv, mixer.norm)),
            attention=self._attention(block) if isinstance(block, Block) else None,
            neuron=Membrane.of(cast(LIF, mlp.neuron1)),
            fc1=self._synapse(mlp.fc1, mlp.norm1),
            hidden_neuron=Membrane.of(cast(LIF, mlp.neuron2)),
            fc2=self._synapse(mlp.fc2, mlp.norm2),
        )

    def _attention(self, block: Block) -> _Attention:
        attn = cast(SpikingSelfAttention, block.attn)
        return _Attention(
            neuron=Membrane.of(cast(LIF, block.neuron)),
            qkv=self._synapse(attn.qkv, attn.qkv_norm, attn.qkv_weight),
            qkv_neuron=Membrane.of(cast(LIF, attn.qkv_neuron)),
            mix=mixing(attn, self.dtype, integer=self.planes > 0),
            mix_neuron=Membrane.of(cast(LIF, attn.mix_neuron)),
            proj=self._synapse(attn.proj, attn.proj_norm),
        )

    def _down(self, down: Downsample) -> _Downsample:
        return _Downsample(
            neuron=Membrane.of(cast(LIF, down.neuron)),
            conv1=self._synapse(down.conv1, down.norm1),
            neuron1=Membrane.of(cast(LIF, down.neuron1)),
            conv2=self._synapse(down.conv2, down.norm2),
            shortcut=self._synapse(down.shortcut, down.shortcut_norm),
        )

    def _folded(self, layer: Any, norm: Any, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Folded weight and bias, their sign turned."""
        weight, bias = fold(layer.weight if weight is None else weight, layer.bias, cast(Norm, norm))
        return -weight, -bias

    def _synapse(self, layer: Any, norm: Any, weight: Tensor | None = None) -> Synapse:
        weight, bias = self._folded(layer, norm, weight)
        places = Places.of(layer)
        if self.planes:
            return IntegerSynapse(weight, bias, self.planes, places)
        return FloatSynapse(weight, bias, self.dtype, places)


def widest(config: ModelConfig, height: int, width: int) -> int:
    """Elements of the stem's widest layer, stages included, for one image of height x width and one step."""
    found = 0
    for channels, pooled in zip((*config.stem_channels, config.stem_width), config.stem_pool, strict=True):
        height, width = (height // 2, width // 2) if pooled else (height, width)
        found = max(found, channels * height * width)
    ways = pairwise((*config.stage_widths, config.embed_dim))
    for (channels, out), depth in zip(ways, config.stage_depths, strict=True):
        hidden = config.mlp_ratio * channels if depth else 0
        found = max(found, max(hidden, out) * height * width)
        height, width = height // 2, width // 2
    return found


def _images(tokens: Tensor, grid: Grid) -> Tensor:
    """[B · N, C] as [B, H, W, C]."""
    return tokens.view(-1, *grid, tokens.shape[-1])


def _pool(spikes: Tensor) -> Tensor:
    """Max-pool (3, stride 2, padding 1) of [B, H, W, C] with even H and W: where any of three by three fired."""
    larger = torch.bitwise_or if spikes.dtype == torch.uint8 else torch.maximum
    for dim in (1, 2):
        even, odd = (spikes.unflatten(dim, (-1, 2)).select(dim + 1, i) for i in (0, 1))
        spikes = larger(even, odd)
        n = spikes.shape[dim] - 1
        later = spikes.narrow(dim, 1, n)
        larger(later, odd.narrow(dim, 0, n), out=later)
    return spikes
