"""Whether a model on a GPU has an engine: what it is made of, what the GPU multiplies, and that results are right."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import nn

from ..attention import RandomAttention, SpikingSelfAttention, STDPAttention
from ..ops import availability
from ..ops.packed import MAX_STEPS
from ..ops.stdp import StdpWindow, stdp_attention
from ..ops.stdp.limits import FEATURES
from .engine import structure

_FIRST = (8, 0)
"""Compute capability from which Triton multiplies 8-bit integers."""


def obstacle(model: nn.Module) -> str | None:
    """Why this model has no engine on the GPU that it is on, or None."""
    if (unknown := structure(model)) is not None:
        return unknown
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1 or {device.type for device in devices} != {"cuda"}:
        return "the model is not on one GPU"
    if {p.dtype for p in model.parameters()} != {torch.float32}:
        return "the weights are not all in float32"
    return availability.obstacle(True) or unfit(model) or hardware(devices.pop())


def unfit(model: nn.Module) -> str | None:
    """Why no kernel takes this model, on whatever GPU, or None."""
    for attention in (module for module in model.modules() if isinstance(module, SpikingSelfAttention)):
        if type(attention) not in (STDPAttention, RandomAttention):
            return f"{type(attention).__name__} has no kernel for packed spikes"
        if attention.head_dim > FEATURES:
            return f"a head has {attention.head_dim} features, more than {FEATURES}"
    return too_many(model.time_steps)  # pyright: ignore[reportArgumentType]


def too_many(time_steps: int) -> str | None:
    return f"a byte holds {MAX_STEPS} time steps, not {time_steps}" if time_steps > MAX_STEPS else None


@lru_cache(maxsize=16)
def hardware(device: torch.device) -> str | None:
    """Why 8-bit products are not to be had on this GPU, or None: its instructions, and kernels with right results."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < _FIRST:
        return "this GPU has no 8-bit products that Triton knows"
    try:
        wrong = wrong_products(device) or wrong_attention(device)
    except Exception as error:  # the compiler's own, of any class
        return f"this Triton's 8-bit products do not run: {(str(error).splitlines() or [''])[0]}"
    return "this Triton's kernels on packed spikes are wrong" if wrong else None


@torch.no_grad()
def wrong_products(device: torch.device) -> bool:
    """Whether a small layer's spikes differ from those in float64, with either reset."""
    from ..ops.packed import Constants, pack
    from ..ops.packed import triton as ops

    made = torch.Generator().manual_seed(0)
    spikes = torch.randint(0, 2, (4, 70, 48), generator=made)
    levels = torch.randint(-127, 128, (40, 48), generator=made)
    weight = ops.Weight(*(x.to(device) for x in (levels.to(torch.int8), torch.full((40,), 1 / 256), torch.ones(40))))
    currents = spikes.double() @ levels.double().T / 256 + 1  # whose every step float32 holds
    wrong = False
    for neuron in (Constants(0.5, 2.0, None), Constants(0.5, 2.0, 2.0)):
        with current_device(device):
            found = ops.linear(pack(spikes).to(device), weight, neuron, 4)
        wrong |= not torch.equal(found.cpu(), pack(neuron.fire(currents)))
    return wrong


@torch.no_grad()
def wrong_attention(device: torch.device) -> bool:
    """Whether spikes behind the attention of two unlike heads differ from float64's in more than the odd byte.

    Rounded weights of attention may flip a spike that is next to its threshold.
    """
    from ..ops.packed import Constants, pack
    from ..ops.packed import triton as ops
    from ..ops.stdp.launch import window_table

    heads, features, tokens, images = 2, 16, 33, 2
    window = StdpWindow(a_plus=(0.45, 0.2), a_minus=(0.3, 0.4), tau_plus=(20.0, 9.0), offset=(0.5, 0.7))
    made = torch.Generator().manual_seed(0)
    spikes = (torch.rand(4, images * tokens, 3 * heads * features, generator=made) < 0.3).to(torch.uint8)
    query, key, value = spikes.double().view(4, images, tokens, 3, heads, features).permute(3, 0, 1, 4, 2, 5)
    currents = stdp_attention(query, key, value, window, scale=4 / tokens, implementation="dense")
    currents = currents.transpose(2, 3).reshape(4, images * tokens, heads * features)
    neuron = Constants(0.5, 1.0, None)
    with current_device(device):
        table = window_table(window, heads, features, device)
        found = ops.stdp(pack(spikes).to(device), table, 4 / tokens, neuron, heads, 4, tokens)
    return float((found.cpu() != pack(neuron.fire(currents))).double().mean()) > 0.02


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
