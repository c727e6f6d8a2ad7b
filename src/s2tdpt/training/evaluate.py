"""How often a model is right, and how often its neurons fire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2tdpt.data import DeviceLoader, ImageSet
from s2tdpt.errors import InputError
from s2tdpt.inference import accelerate
from s2tdpt.models.dispatch import module_by_module
from s2tdpt.neurons import LIF
from s2tdpt.training.distributed import Ranks, pick_device
from s2tdpt.training.numerics import scoring


def evaluate(
    model: nn.Module,
    data: ImageSet,
    *,
    batch_size: int = 500,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> dict[str, Any]:
    """Accuracy and mean cross-entropy in evaluation mode: {"top1", "top5", "loss", "n"}, accuracies as fractions.

    The model is moved to `device`. precision "float32" runs it as it is, without TF32, "bfloat16" its products in half
    precision; "auto" is "float32", but for a long evaluation, which `inference.accelerate` speeds up in 8 bits. With
    fewer than five classes top5 is 1. Raises `InputError` for an empty set or an unknown precision.
    """
    place = pick_device(device)
    model = model.to(place)
    with inference(model):
        if precision == "auto":
            precision = "float32"
            if len(data):
                loader = DeviceLoader(data.limit(4), 4, device=place, shuffle=False, drop_last=False)
                model = accelerate(model, next(loader.epoch(0))[0], len(data))
        return evaluate_ranks(model, data, Ranks(place), batch_size=batch_size, precision=precision)


def evaluate_ranks(
    model: nn.Module, data: ImageSet, ranks: Ranks, *, batch_size: int, precision: str
) -> dict[str, Any]:
    """`evaluate`, each rank on its share of the images, summed over ranks; all of them call it together."""
    n = len(data)
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"precision {precision!r} is unknown: use float32 or bfloat16")
    if n == 0:
        raise InputError(f"{data.name}: there is no image to evaluate on")
    if ranks.world_size > 1:
        data = data.subset(torch.arange(n)[ranks.rank :: ranks.world_size])
    own = _totals(model, data, ranks.device, batch_size, precision) if len(data) else [0.0] * 4
    top1, top5, loss, seen = ranks.sum(own)
    if seen != n:
        raise InputError(f"{data.name}: {seen:.0f} of {n} images were evaluated")
    return {"top1": top1 / n, "top5": top5 / n, "loss": loss / n, "n": n}


@torch.no_grad()
def _totals(model: nn.Module, data: ImageSet, device: torch.device, batch_size: int, precision: str) -> list[float]:
    """Right at first, right among five, summed loss, images."""
    loader = DeviceLoader(data, min(batch_size, len(data)), device=device, augment=None, shuffle=False, drop_last=False)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    seen = 0
    with inference(model):
        for x, target in loader.epoch(0):
            with scoring(device, precision):
                logits = model(x)
            logits = logits.float()
            hits = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
            loss = F.cross_entropy(logits, target, reduction="sum")
            totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss]).double()
            seen += len(target)
    return [*totals.tolist(), float(seen)]


@torch.no_grad()
def firing_rates(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Fractions of (neuron, step, image) that fire on images x [B, C, H, W] in evaluation mode.

    {"mean_firing_rate": plain mean over the neurons of every LIF layer (None without any), "attention_firing_rate":
    one a block, of the neuron after w·V}. An ANN gives None and [].
    """
    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, LIF)}
    attention = [block.attn.mix_neuron for block in getattr(model, "blocks", []) if hasattr(block.attn, "mix_neuron")]
    counts: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in names.values()}

    def count(neuron: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> None:
        counts[names[neuron]].append((spikes.sum(dtype=torch.float64), spikes.numel()))

    hooks = [neuron.register_forward_hook(count) for neuron in names]
    try:
        with inference(model), module_by_module(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    spikes = {name: sum(float(total) for total, _ in calls) for name, calls in counts.items()}
    sizes = {name: sum(size for _, size in calls) for name, calls in counts.items()}
    total = sum(sizes.values())
    return {
        "mean_firing_rate": sum(spikes.values()) / total if total else None,
        "attention_firing_rate": [spikes[names[neuron]] / max(1, sizes[names[neuron]]) for neuron in attention],
    }


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's mode before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
