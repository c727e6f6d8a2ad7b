"""The products in a forward pass: which aten operators multiply what, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Events = Callable[[Tensor | None, Tensor | None], int]


@dataclass(frozen=True)
class Product:
    """`left` times `right`: `macs` multiply-accumulates, padding included.

    `right` is None where no tensor ever holds it (softmax weights in fused attention). `events(left, right)` counts
    those that meet a non-zero on each side, without padding; None for a side means that all of it counts.
    """

    op: str
    left: Tensor | None
    right: Tensor
    macs: int
    events: Events


def bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an aten operator by the names of its schema, defaults included."""
    bound = {
        argument.name: argument.default_value for argument in func._schema.arguments if argument.has_default_value()
    }
    bound.update(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    return bound | kwargs


def _hits(values: Tensor | None, shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """Non-zeros summed over `axes` (from the end), or how many there would be without a zero."""
    if values is None:
        return torch.tensor(float(math.prod(shape[axis] for axis in axes)), dtype=torch.float64)
    return (values != 0).sum(axes, dtype=torch.float64)


def matmul(op: str, left: Tensor | None, right: Tensor, shape: tuple[int, ...] = ()) -> Product:
    """[..., m, k] @ [..., k, n]; `shape` stands for a `left` that is not at hand."""
    left_shape, right_shape = tuple(shape if left is None else left.shape), tuple(right.shape)
    batch = torch.broadcast_shapes(left_shape[:-2], right_shape[:-2])
    k, n = right_shape[-2:]

    def events(a: Tensor | None, b: Tensor | None) -> int:
        pairs = _hits(a, left_shape, (-2,)) * _hits(b, right_shape, (-1,))
        return round(pairs.expand(*batch, k).sum().item())

    return Product(op, left, right, math.prod(batch) * left_shape[-2] * k * n, events)


def _convolution(a: dict[str, Any], out: Tensor) -> list[Product]:
    x, weight, groups, transposed = a["input"], a["weight"], a["groups"], a["transposed"]
    dims = weight.ndim - 2
    geometry = (None, a["stride"], a["padding"], a["dilation"], transposed, a["output_padding"])

    def events(left: Tensor | None, right: Tensor | None) -> int:
        mask = (torch.ones_like(x) if left is None else left != 0).double()
        if right is not None:
            return round(torch.convolution(mask, (right != 0).double(), *geometry, groups).sum().item())
        # Every channel meets the same number of filters: add the channels up first.
        taps = torch.ones((1, 1, *weight.shape[2:]), dtype=torch.float64, device=x.device)
        mask = mask.sum(-dims - 1, keepdim=True)
        filters = weight.shape[1] if transposed else weight.shape[0] // groups
        return round(torch.convolution(mask, taps, *geometry, 1).sum().item()) * filters

    macs = (x.numel() if transposed else out.numel()) * math.prod(weight.shape[1:])
    return [Product(f"conv{'_transpose' if transposed else ''}{dims}d", x, weight, macs, events)]


def _attention(a: dict[str, Any], out: Any) -> list[Product]:
    query, key, value = a["query"], a["key"], a["value"]
    if query.ndim > 2 and query.shape[-3] != key.shape[-3]:  # grouped queries
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = matmul("attention q·k", query, key.transpose(-2, -1))
    weights = (*query.shape[:-1], key.shape[-2])
    return [scores, matmul("attention w·v", None, value, weights)]


def _pair(left: str, right: str) -> Callable[[dict[str, Any], Any], list[Product]]:
    """A matrix product whose factors bear these names in the schema; a vector counts as a matrix."""

    def read(a: dict[str, Any], out: Any) -> list[Product]:
        x, y = a[left], a[right]
        return [matmul("matmul", x if x.ndim > 1 else x[None], y if y.ndim > 1 else y[:, None])]

    return read


_READERS: dict[str, Callable[[dict[str, Any], Any], list[Product]]] = {
    "convolution": _convolution,
    "mm": _pair("self", "mat2"),
    "_int_mm": _pair("self", "mat2"),
    "bmm": _pair("self", "mat2"),
    "addmm": _pair("mat1", "mat2"),
    "_addmm_activation": _pair("mat1", "mat2"),
    "baddbmm": _pair("batch1", "batch2"),
    "addbmm": _pair("batch1", "batch2"),
    "mv": _pair("self", "vec"),
    "addmv": _pair("mat", "vec"),
    "dot": _pair("self", "tensor"),
    "vdot": _pair("self", "other"),
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}

_OPAQUE = {  # fused operators that hold products; the report names them instead of leaving them out in silence
    "_cudnn_rnn", "mkldnn_rnn_layer", "_thnn_fused_lstm_cell", "_trilinear", "_scaled_mm", "_weight_int8pack_mm",
    "_weight_int4pack_mm", "_flash_attention_forward", "_efficient_attention_forward", "_cdist_forward",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_sparse_mm", "conv_tbc",
}  # fmt: skip


def is_product(func: Any) -> bool:
    return func.namespace == "aten" and _name(func) in _READERS


def _name(func: Any) -> str:
    return func._opname.removesuffix("_")  # in place or not


def is_opaque(func: Any) -> bool:
    """Whether products may hide in it: somebody's own operator, or a fused one of PyTorch's."""
    return func._opname in _OPAQUE if func.namespace == "aten" else func.namespace not in ("prim", "prims", "profiler")


def read_products(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[Product]:
    return _READERS[_name(func)](bind(func, args, kwargs), out)
