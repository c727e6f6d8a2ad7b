"""STDP attention on the GPU: tiles for short, buckets for long sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from .buckets import stdp_buckets_op
from .launch import last_dense, window_table
from .limits import fits_tile
from .tiles import stdp_tile_op
from .window import StdpWindow


def attention(query: Tensor, key: Tensor, value: Tensor, window: StdpWindow, scale: float) -> Tensor:
    """s · w · V of binary spikes [..., N, D_h] on the GPU: by length, one tile a head or spike-count buckets."""
    lead = query.shape[:-2]
    H = lead[-1] if len(lead) else 1
    q, k, v = (last_dense(x.reshape(-1, H, *x.shape[-2:])) for x in (query, key, value))
    constants = window_table(window, H, q.shape[-1], q.device)
    if q.shape == k.shape and fits_tile(q.shape[2], q.shape[3], half=q.dtype != torch.float32):
        if not q.stride() == k.stride() == v.stride():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, _ = stdp_tile_op(q, k, v, constants, scale)
    else:
        out, *_ = stdp_buckets_op(q, k, v, constants, scale)
    return out.reshape(*lead, *out.shape[-2:])
