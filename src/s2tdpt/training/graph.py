"""A training step recorded once as a CUDA graph and replayed: launching kernels one by one holds a fast model up."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP = 11  # runs before the recording: kernels compile, libraries choose theirs, data parallelism wants eleven


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    result: Tensor


class GraphedStep:
    """`step(*inputs, key=…)` runs `body(*inputs) -> result` from the recording for `key` and these shapes.

    `state()` names every tensor that the body changes in place; a recording leaves them as they were, and those
    the first run creates, such as an optimiser's moments, at zero. The result is overwritten by the next call.
    """

    def __init__(self, body: Callable[..., Tensor], state: Callable[[], Iterable[Tensor]]) -> None:
        self._body, self._state = body, state
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, *inputs: Tensor, key: Hashable) -> Tensor:
        recording = self.record(*inputs, key=key)
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.result

    def clear(self) -> None:
        """Let go of all recordings; NCCL waits for those that hold its operations before it says goodbye."""
        if self._recordings:
            torch.cuda.synchronize()
        self._recordings.clear()

    def record(self, *inputs: Tensor, key: Hashable) -> _Recording:
        """The recording for this key and these shapes, made now if there is none."""
        full_key = (key, *((tensor.shape, tensor.dtype) for tensor in inputs))
        if full_key not in self._recordings:
            kept = (tensor.clone(memory_format=torch.preserve_format) for tensor in inputs)
            self._recordings[full_key] = self._record(tuple(kept))
        return self._recordings[full_key]

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        before = {tensor.data_ptr(): (tensor, tensor.clone()) for tensor in self._state()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._body(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL has a thread of its own
            result = self._body(*inputs)
        for tensor in self._state():
            _, value = before.get(tensor.data_ptr(), (tensor, None))
            tensor.zero_() if value is None else tensor.copy_(value)
        return _Recording(graph, inputs, result)
