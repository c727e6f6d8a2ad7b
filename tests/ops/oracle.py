"""Eqs 17-23 and the synapse array in plain Python, one scalar at a time: written from the paper, not from the code."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product

import torch
from torch import Tensor

from s2tdpt.ops import StdpWindow


def constants_of_head(window: StdpWindow, head: int) -> dict[str, float]:
    return {k: v[head] if isinstance(v, tuple) else v for k, v in asdict(window).items()}


def weight(r_q: float, r_k: float, head_dim: int, c: dict[str, float]) -> float:
    """Eqs 18-22 for one query and one key."""
    t_q = c["t_max"] * (1 - r_q / head_dim)
    t_k = c["t_max"] * (1 - r_k / head_dim)
    delta_t = t_q - t_k
    if delta_t < 0:
        delta_w = c["a_plus"] * math.exp(-abs(delta_t) / c["tau_plus"])
    else:
        delta_w = -c["a_minus"] * math.exp(-abs(delta_t) / c["tau_minus"])
    if not c["jump"]:
        delta_w = (c["a_plus"] if delta_t < 0 else -c["a_minus"]) - delta_w
    return delta_w + c["offset"]


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V, a sum over keys for every query and feature."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    for at in product(*map(range, query.shape[:-2])):
        c = constants_of_head(window, at[-1] if at else 0)
        q, k, v = query[at].tolist(), key[at].tolist(), value[at].tolist()
        for i, d in product(range(len(q)), range(len(v[0]))):
            terms = (weight(sum(q[i]), sum(k[j]), len(q[i]), c) * v[j][d] for j in range(len(k)))
            out[(*at, i, d)] = scale * math.fsum(terms)
    return out


def synapse_array(
    query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float
) -> tuple[Tensor, int, int]:
    """The event form with a counter at every addition and every read: output [..., Nq, D_v], additions, reads."""
    head_dim = query.shape[-1]
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    additions = reads = 0
    for at in product(*map(range, query.shape[:-2])):
        c = constants_of_head(window, at[-1] if at else 0)
        q, k, v = query[at].tolist(), key[at].tolist(), value[at].tolist()
        y = [[0.0] * len(v[0]) for _ in range(head_dim + 1)]
        for j, d in product(range(len(v)), range(len(v[0]))):
            if v[j][d]:
                for r_q in range(head_dim + 1):
                    y[r_q][d] += weight(r_q, sum(k[j]), head_dim, c)
                    additions += 1
        for i, d in product(range(len(q)), range(len(v[0]))):
            out[(*at, i, d)] = scale * y[int(sum(q[i]))][d]
            reads += 1
    return out, additions, reads
