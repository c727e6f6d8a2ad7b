"""Where a tensor comes from, followed through every operator of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Origin(IntEnum):
    """Of several inputs, an operator's output takes the highest."""

    CONSTANT = 0  # weights, and whatever does not depend on the model's input
    SPIKES = 1  # the output of a neuron or of a comparison, pooled, averaged or summed
    PIXELS = 2  # the model's input, copied, cut up or normalised
    MEMBRANE = 3  # the result of a product, normalised, added up or averaged


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))


class Origins:
    """Origins are kept by storage: views share one, and writing into a slice marks the whole."""

    def __init__(self) -> None:
        # The weak reference keeps the address from being used again, so that it can serve as the key.
        self._known: dict[int, tuple[StorageWeakRef, Origin]] = {}

    def __getitem__(self, tensor: Tensor) -> Origin:
        if tensor.layout is not torch.strided:
            return Origin.CONSTANT
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known[1] if known else Origin.CONSTANT

    def mark(self, tensor: Tensor, origin: Origin) -> None:
        if tensor.layout is torch.strided:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._known[reference.cdata] = (reference, origin)

    def follow(self, name: str, inputs: Any, outputs: Any, *, product: bool) -> None:
        """Note what operator `name` made of its inputs; a `product` of spikes with spikes only counts spikes."""
        if name.startswith("new_") or name.endswith("_like"):
            return
        origins = [self[tensor] for tensor in tensors(inputs)]
        origin = max(origins, default=Origin.CONSTANT)
        if origin is Origin.CONSTANT:
            return
        if product and set(origins) != {Origin.SPIKES}:
            origin = Origin.MEMBRANE
        for tensor in tensors(outputs):
            self.mark(tensor, Origin.SPIKES if tensor.dtype is torch.bool else origin)
