"""The spiking Transformer's forward pass through the fused operators: the same modules, the same numbers, fewer passes.

Membranes are [T, M, C] with M = batch x grid. A convolution or product is followed by one operator that normalises,
adds the residual, fires over all T steps and pools. `transformer.py` is the readable truth; tests compare the two.
"""

# pyright: reportPrivateImportUsage=false
# (torch documents its _foreach_ functions, but does not export them)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..attention import STDPAttention
from ..neurons import LIF, PLIF
from ..ops.charge import charge
from ..ops.norm_lif import NormLif
from ..ops.norm_lif.triton import norm_lif
from ..ops.stdp.launch import window_table
from ..ops.stdp.tiles import stdp_lif_op
from ..ops.synapses import ConvBeforeNorm, DepthwiseBeforeNorm, LinearBeforeNorm
from .block import Block, Grid, LocalBlock, LocalMixer
from .stages import Downsample, HierarchicalStem, Stage

if TYPE_CHECKING:
    from .transformer import SpikingTransformer


Spikes = tuple[Tensor, Tensor]
"""Spikes [T, M, C], and the same packed into bits: what the backward pass keeps. Empty where nothing is kept."""
_Part = Block | LocalBlock | Downsample


def forward_features(model: SpikingTransformer, x: Tensor) -> Tensor:
    """As `model.forward_features`: images [B, C, H, W] or [T, B, C, H, W] to membranes [T, B, N, D]."""
    return _FusedForward(model, x).run(x)


class _FusedForward:
    """One forward pass over the model's modules."""

    def __init__(self, model: SpikingTransformer, x: Tensor) -> None:
        model.stem.check(x)
        self.stem = model.stem
        self.largest = model.config.pool_gradient == "largest"
        grid = self.stem.grid(*x.shape[-2:])
        self.parts: list[tuple[_Part, Grid]] = [*_stages(self.stem, x), *((cast(Block, b), grid) for b in model.blocks)]
        self.static = x.ndim == 4
        self.T, self.batch = (model.time_steps, x.shape[0]) if self.static else (x.shape[0], x.shape[1])
        self.statistics: list[tuple[nn.BatchNorm1d, Tensor, Tensor, int]] = []

    def run(self, x: Tensor) -> Tensor:
        first, *later = [_first_neuron(part) for part, _ in self.parts]
        spikes, u = self._embed(x if self.static else x.flatten(0, 1), first)
        for (part, grid), neuron in zip(self.parts, [*later, None], strict=True):
            if isinstance(part, Downsample):
                spikes, u = self._downsample(part, spikes, grid, neuron)
            else:
                spikes, u = self._block(part, spikes, u, grid, neuron)
        self._update_running_statistics()
        return u.view(self.T, self.batch, -1, u.shape[-1])

    def _embed(self, images: Tensor, then: nn.Module) -> tuple[Spikes, Tensor]:
        """The stem's convolutions: spikes of the neuron after them, and its membrane."""
        stem = self.stem
        y = stem.conv[0](images.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        for i, neuron in enumerate(stem.neuron, start=1):
            height, width = y.shape[1:3]
            pool = (height, width) if stem.pooled[i] else None
            spikes, _ = self._fire(stem.norm[i - 1], self._rows(y), neuron, pool=pool)
            if pool:
                height, width = (height + 1) // 2, (width + 1) // 2
            y = self._convolve(stem.conv[i], spikes, (height, width))
        seen = not isinstance(self.parts[0][0], Downsample)  # which takes spikes alone
        return self._fire(stem.norm[-1], self._rows(y), then, membrane=seen)

    def _downsample(
        self, down: Downsample, spikes: Spikes, grid: Grid, then: nn.Module | None
    ) -> tuple[Spikes, Tensor]:
        shortcut = self._rows(self._convolve(down.shortcut, spikes, grid))
        _, residual = self._fire(down.shortcut_norm, shortcut, None, membrane=True)
        y = self._rows(self._convolve(down.conv1, spikes, grid))
        pooled, _ = self._fire(down.norm1, y, down.neuron1, pool=grid)
        y = self._rows(self._convolve(down.conv2, pooled, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)))
        return self._fire(down.norm2, y, then, residual=residual, membrane=True)

    def _block(
        self, block: Block | LocalBlock, spikes: Spikes, u: Tensor, grid: Grid, then: nn.Module | None
    ) -> tuple[Spikes, Tensor]:
        mlp = block.mlp
        if block.mixer is not None:
            neuron = block.neuron if isinstance(block, Block) else mlp.neuron1
            spikes, u = self._mix(block.mixer, spikes, u, grid, neuron)
        if isinstance(block, Block):
            attn = block.attn
            y = self._linear(attn.proj, self._attend(cast(STDPAttention, attn), spikes), before=attn.proj_norm)
            spikes, u = self._fire(attn.proj_norm, y, mlp.neuron1, after=attn.proj, residual=u, membrane=True)
        y = self._linear(mlp.fc1, spikes, before=mlp.norm1)
        hidden, _ = self._fire(mlp.norm1, y, mlp.neuron2, after=mlp.fc1)
        y = self._linear(mlp.fc2, hidden, before=mlp.norm2)
        return self._fire(mlp.norm2, y, then, after=mlp.fc2, residual=u, membrane=True)

    def _mix(self, mixer: LocalMixer, spikes: Spikes, u: Tensor, grid: Grid, then: nn.Module) -> tuple[Spikes, Tensor]:
        if mixer.conv.groups == 1:
            y = self._convolve(mixer.conv, spikes, grid)
        else:
            seen = charge(spikes[0], mixer.conv, fused=True).view(-1, *grid, u.shape[-1])
            y = cast(Tensor, DepthwiseBeforeNorm.apply(seen, spikes[1], mixer.conv.weight))
        return self._fire(mixer.norm, self._rows(y), then, residual=u, membrane=True)

    def _convolve(self, layer: nn.Module, spikes: Spikes, grid: Grid) -> Tensor:
        """Images [T · B, H', W', C'] of spikes [T, M, C] on a grid."""
        conv, (fired, bits) = cast(nn.Conv2d, layer), spikes
        images = charge(fired, conv, fused=True).view(-1, *grid, fired.shape[-1])
        return cast(Tensor, ConvBeforeNorm.apply(images, bits, conv.weight, conv.stride[0], conv.padding[0]))

    def _rows(self, y: Tensor) -> Tensor:
        """Images [T · B or B, H, W, C] as [T or 1, M, C]: a static image passes the first convolution once."""
        return y.reshape(len(y) // self.batch, -1, y.shape[-1])

    def _attend(self, attn: STDPAttention, spikes: Spikes) -> Spikes:
        y = self._linear(attn.qkv, spikes, before=attn.qkv_norm)
        (qkv, bits), _ = self._fire(attn.qkv_norm, y, attn.qkv_neuron)
        tokens = qkv.view(self.T, self.batch, -1, qkv.shape[-1])
        window = window_table(attn.window, attn.num_heads, attn.head_dim, qkv.device)
        neuron = cast(LIF, attn.mix_neuron)
        scale = attn.gain / tokens.shape[2]
        constants = _spec(neuron, self.T).pack()
        mixed, _, _ = stdp_lif_op(tokens, bits, window, _inv_tau(neuron, qkv.device), scale, attn.num_heads, *constants)
        return mixed.view(self.T, -1, mixed.shape[-1]), bits.new_empty(0)

    def _linear(self, layer: nn.Linear, spikes: Spikes, *, before: nn.Module) -> Tensor:
        fired, bits = charge(spikes[0], layer, fused=True), spikes[1]
        return cast(Tensor, LinearBeforeNorm.apply(fired, bits, layer.weight, layer.bias, before.training))

    def _fire(
        self,
        norm: nn.Module,
        y: Tensor,
        neuron: nn.Module | None,
        *,
        after: nn.Linear | None = None,
        residual: Tensor | None = None,
        membrane: bool = False,
        pool: tuple[int, int] | None = None,
    ) -> tuple[Spikes, Tensor]:
        """Spikes and membranes of BN(y) (+ residual), y [T or 1, M, C]; `after` is the layer whose bias y lacks."""
        bn, lif = cast(nn.BatchNorm1d, norm), cast("LIF | None", neuron)
        mean, var = cast(Tensor, bn.running_mean).float(), cast(Tensor, bn.running_var).float()
        bias = None if after is None else after.bias.detach()
        packs = lif is not None and torch.is_grad_enabled() and y.shape[-1] % 8 == 0
        flags = {"training": bn.training, "membrane": membrane, "bits": packs, "largest": self.largest}
        spec = replace(_spec(lif, self.T), eps=bn.eps, pool=pool, **flags)
        if bias is not None and not bn.training:
            mean = mean - bias
        tau = _inv_tau(lif, y.device)
        spikes, u, mean, var, bits = norm_lif(y, bn.weight.float(), bn.bias.float(), mean, var, tau, residual, spec)
        if bn.training:
            self.statistics.append((bn, mean if bias is None else mean + bias, var, y.shape[0] * y.shape[1]))
        return (spikes, bits), u

    def _update_running_statistics(self) -> None:
        """Running mean and unbiased variance of every norm, as nn.BatchNorm keeps them, in a few fused updates."""
        if not self.statistics:
            return
        norms, means, variances, counts = zip(*self.statistics, strict=True)
        dtype = norms[0].running_mean.dtype  # float32, but in a model in half precision
        means = [m.to(dtype) for m in means]
        unbiased = [(v * (n / max(1, n - 1))).to(dtype) for v, n in zip(variances, counts, strict=True)]
        momentum = norms[0].momentum
        if momentum is None:  # nn.BatchNorm's plain average over all batches
            momentum = 1 / (int(cast(Tensor, norms[0].num_batches_tracked)) + 1)
        with torch.no_grad():
            torch._foreach_lerp_([n.running_mean for n in norms], means, momentum)
            torch._foreach_lerp_([n.running_var for n in norms], unbiased, momentum)
            torch._foreach_add_([n.num_batches_tracked for n in norms], 1)


def _stages(stem: nn.Module, x: Tensor) -> Iterator[tuple[_Part, Grid]]:
    if isinstance(stem, HierarchicalStem):
        for stage, grid in zip(stem.stages, stem.grids(*x.shape[-2:]), strict=True):
            for part in (*cast(Stage, stage).blocks, cast(Stage, stage).down):
                yield cast(_Part, part), grid


def _first_neuron(part: _Part) -> nn.Module:
    """The neuron that fires on the membrane that comes in."""
    if isinstance(part, Downsample):
        return part.neuron
    if part.mixer is not None:
        return part.mixer.neuron
    return part.neuron if isinstance(part, Block) else part.mlp.neuron1


def _spec(neuron: LIF | None, time_steps: int) -> NormLif:
    if neuron is None:
        return NormLif(time_steps=time_steps, training=False, fire=False)
    return NormLif(
        time_steps=time_steps,
        training=False,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        decay_input=neuron.decay_input,
        detach_reset=neuron.detach_reset,
        surrogate=neuron.surrogate,
        alpha=neuron.alpha,
    )


def _inv_tau(neuron: LIF | None, device: torch.device) -> Tensor:
    if isinstance(neuron, PLIF):
        return neuron.w.float().sigmoid()
    return _constant(1.0 if neuron is None else 1 / float(neuron.tau), device)


@lru_cache(maxsize=64)
def _constant(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)
