"""The forward pass of a spiking Transformer on a CPU: folded weights, all steps in one go, few passes over memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import SpikingSelfAttention
from ..errors import InputError
from ..models.block import Block, SpikingMLP
from ..models.dispatch import NORMS, unknown_part
from ..models.stem import Stem
from ..models.transformer import SpikingTransformer
from ..neurons import LIF, PLIF
from .fold import Norm, fold
from .membrane import Membrane
from .mixing import MIXED, Mixing, mixing
from .synapses import FloatSynapse, IntegerSynapse, Synapse

PLANES = {"int8": 1, "int16": 2}
"""8-bit planes of weights of each integer precision."""
_KNOWN = {Stem, Block, SpikingMLP, LIF, PLIF, nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.ModuleList, *NORMS, *MIXED}
_ELEMENTS = 1 << 22
"""Of the widest layer at one step: more images at once would only leave the caches."""


def obstacle(model: nn.Module) -> str | None:
    """Why this model has no engine on a CPU, or None."""
    if (unknown := structure(model)) is not None:
        return unknown
    devices, dtypes = ({getattr(p, kind) for p in model.parameters()} for kind in ("device", "dtype"))
    if devices != {torch.device("cpu")}:
        return "the model is not on the CPU"
    if dtypes not in ({torch.float32}, {torch.float64}):
        return "the weights are not all in float32 or all in float64"
    return None


def structure(model: nn.Module) -> str | None:
    """What no engine knows about this model, or None."""
    if type(model) is not SpikingTransformer:
        return f"{type(model).__name__} is not a spiking Transformer of this package"
    return unknown_part(model, _KNOWN, "it does not know")


@dataclass(frozen=True)
class _Block:
    neuron: Membrane
    qkv: Synapse
    qkv_neuron: Membrane
    mix: Mixing
    mix_neuron: Membrane
    proj: Synapse
    mlp_neuron: Membrane
    fc1: Synapse
    fc2_neuron: Membrane
    fc2: Synapse


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
        self.widths = [conv.out_channels for conv in cast(Iterable[nn.Conv2d], stem.conv)]
        weight, bias = self._folded(stem.conv[0], stem.norm[0])
        self.first = FloatSynapse(weight, bias, self.dtype)  # pixels are no spikes
        self.convs = [self._synapse(c, n) for c, n in zip(stem.conv[1:], stem.norm[1:], strict=True)]
        self.neurons = [Membrane.of(cast(LIF, neuron)) for neuron in stem.neuron]
        self.blocks = [self._block(cast(Block, block)) for block in model.blocks]
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
        images = max(1, _ELEMENTS // self._widest(*x.shape[-2:]))
        with torch.autocast("cpu", enabled=False):
            logits = [self._logits(part, time_steps) for part in x.split(images, dim=0 if static else 1)]
        return torch.cat(logits).to(self.answers)

    def _logits(self, x: Tensor, time_steps: int) -> Tensor:
        u, tokens = self._embed(x, time_steps)
        for block in self.blocks:
            u = self._attend(block, u, tokens)
            spikes = block.mlp_neuron.fire(u, self.spikes, keep=True)
            spikes = block.fc2_neuron.fire_through(block.fc1, spikes, self.spikes)
            u = [block.fc2.add_to(a, b) for a, b in zip(u, spikes, strict=True)]
        mean = torch.stack([a.unflatten(0, (-1, tokens)).mean(1) for a in u]).mean(0)
        return F.linear(mean, *self.head)

    def _embed(self, x: Tensor, time_steps: int) -> tuple[list[Tensor], int]:
        """Membranes [B · N, D] of each step, and N."""
        u = [self._pixels(x)] * time_steps if x.ndim == 4 else [self._pixels(image) for image in x]
        if not self.convs:
            u = [current.clone() for current in u]  # those of a still image are one tensor, and blocks add to u
        else:
            spikes = self.neurons[0].fire(u, self.spikes, keep=True)
            for pooled, conv, neuron in zip(self.pooled[1:], self.convs, self.neurons[1:], strict=False):
                spikes = neuron.fire_through(conv, [_pool(s) for s in spikes] if pooled else spikes, self.spikes)
            u = [self.convs[-1](_pool(s) if self.pooled[-1] else s) for s in spikes]
        return [a.flatten(0, 2) for a in u], u[0].shape[1] * u[0].shape[2]

    def _pixels(self, x: Tensor) -> Tensor:
        return self.first(x.permute(0, 2, 3, 1))

    def _attend(self, block: _Block, u: list[Tensor], tokens: int) -> list[Tensor]:
        spikes = block.neuron.fire(u, self.spikes, keep=True)
        spikes = block.qkv_neuron.fire_through(block.qkv, spikes, self.spikes)
        mixed = [block.mix(s, tokens) for s in spikes]
        spikes = block.mix_neuron.fire(mixed, self.spikes, keep=False)
        return [block.proj.add_to(a, s) for a, s in zip(u, spikes, strict=True)]

    def _widest(self, height: int, width: int) -> int:
        """Elements of the widest layer of the stem for one image and step."""
        widest = 0
        for channels, pooled in zip(self.widths, self.pooled, strict=True):
            if pooled:
                height, width = height // 2, width // 2
            widest = max(widest, channels * height * width)
        return widest

    def _block(self, block: Block) -> _Block:
        attn, mlp = cast(SpikingSelfAttention, block.attn), block.mlp
        return _Block(
            neuron=Membrane.of(cast(LIF, block.neuron)),
            qkv=self._synapse(attn.qkv, attn.qkv_norm, attn.qkv_weight),
            qkv_neuron=Membrane.of(cast(LIF, attn.qkv_neuron)),
            mix=mixing(attn, self.dtype, integer=self.planes > 0),
            mix_neuron=Membrane.of(cast(LIF, attn.mix_neuron)),
            proj=self._synapse(attn.proj, attn.proj_norm),
            mlp_neuron=Membrane.of(cast(LIF, mlp.neuron1)),
            fc1=self._synapse(mlp.fc1, mlp.norm1),
            fc2_neuron=Membrane.of(cast(LIF, mlp.neuron2)),
            fc2=self._synapse(mlp.fc2, mlp.norm2),
        )

    def _folded(self, layer: Any, norm: Any, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Folded weight and bias, their sign turned."""
        weight, bias = fold(layer.weight if weight is None else weight, layer.bias, cast(Norm, norm))
        return -weight, -bias

    def _synapse(self, layer: Any, norm: Any, weight: Tensor | None = None) -> Synapse:
        weight, bias = self._folded(layer, norm, weight)
        return IntegerSynapse(weight, bias, self.planes) if self.planes else FloatSynapse(weight, bias, self.dtype)


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
