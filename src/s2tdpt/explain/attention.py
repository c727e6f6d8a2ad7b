"""STDP attention made visible: the weights of every head, block and step, and the window they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.dispatch import module_by_module
from ..ops import observe
from ..ops.stdp import StdpWindow, stdp_weights
from .probe import check_images, evaluating, token_grid


@dataclass(frozen=True)
class AttentionRecord:
    """What one block's STDP attention was given: spikes query, key, value [T, B, H, N, D_h], window and scale."""

    query: Tensor
    key: Tensor
    value: Tensor
    window: StdpWindow
    scale: float
    grid: tuple[int, int]

    def weights(self) -> Tensor:
        """w [T, B, H, N, N] of eq. 22, row = query (pre-synaptic), column = key. Grows with N²."""
        return stdp_weights(self.query, self.key, self.window)

    def received(self) -> Tensor:
        """Mean weight that each token receives as a key, over queries and steps: [B, H, h, w]."""
        return self.weights().mean((0, -2)).unflatten(-1, self.grid)

    def from_token(self, token: int) -> Tensor:
        """Weights with which `token` (row-major on the grid) reads all tokens, mean over steps: [B, H, h, w]."""
        tokens = self.query.shape[-2]
        if not 0 <= token < tokens:
            raise InputError(f"explain: token {token} is outside 0..{tokens - 1}")
        row = stdp_weights(self.query[..., token : token + 1, :], self.key, self.window)
        return row.squeeze(-2).mean(0).unflatten(-1, self.grid)


@torch.no_grad()
def record_attention(model: nn.Module, x: Tensor) -> list[AttentionRecord]:
    """One record for each STDP attention that the model runs on images x, in order; an empty list if it has none."""
    check_images(x)
    grid = token_grid(model, x)
    records: list[AttentionRecord] = []

    def listen(name: str, info: dict[str, Any]) -> None:
        if name == "stdp_attention":
            query, key, value = (info[part].detach() for part in ("query", "key", "value"))
            records.append(AttentionRecord(query, key, value, info["window"], info["scale"], grid))

    with evaluating(model), module_by_module(model), observe.observe(listen):
        model(x)
    return records


def attention_rollout(records: Sequence[AttentionRecord], token: int) -> Tensor:
    """How much of each token reaches `token` through all blocks: [B, h, w], sums to 1 (Abnar & Zuidema 2020).

    Mean over heads and steps, rows normalised and mixed half and half with the residual path. STDP weights are not
    normalised in the model and V decides what they carry, so this is a picture of the routes, not of the traffic.
    """
    if not records:
        raise InputError("attention_rollout: no STDP attention was recorded")
    tokens = records[0].query.shape[-2]
    if not 0 <= token < tokens:
        raise InputError(f"attention_rollout: token {token} is outside 0..{tokens - 1}")
    row: Tensor | None = None
    for record in reversed(records):
        routes = record.weights().mean((0, 2))  # [B, N, N]
        routes = routes / routes.sum(-1, keepdim=True)
        routes = (routes + torch.eye(tokens, dtype=routes.dtype, device=routes.device)) / 2
        row = routes[:, token : token + 1] if row is None else row @ routes
    assert row is not None
    return row.squeeze(1).unflatten(-1, records[0].grid)


def window_curve(window: StdpWindow, head_dim: int) -> tuple[Tensor, Tensor]:
    """All that STDP attention can say: m = -head_dim..head_dim [2·head_dim + 1] and its weight w(m) [H or 1, ...].

    m = r_Q − r_K is how many more spikes the query has than the key; w depends on nothing else.
    """
    count = torch.arange(head_dim + 1)
    fires = (torch.arange(head_dim) < count.unsqueeze(-1)).double()  # row r: r of head_dim features fire
    silent = torch.zeros(1, head_dim, dtype=torch.float64)
    heads = window.num_heads or 1
    fires, silent = (spikes.expand(heads, *spikes.shape) for spikes in (fires, silent))
    positive = stdp_weights(fires, silent, window).squeeze(-1)  # m = 0 .. D_h
    negative = stdp_weights(silent, fires, window).squeeze(-2)  # m = 0 .. -D_h
    weights = torch.cat([negative.flip(-1)[:, :-1], positive], dim=-1)
    return torch.arange(-head_dim, head_dim + 1), weights
