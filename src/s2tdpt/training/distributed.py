"""Data parallel training on PyTorch's own engine: one process a device, started by `torchrun`, or one process alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from s2tdpt.errors import InputError, S2tdptError, TrainingError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; rank 0 writes files and talks."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module, *, graphed: bool = False) -> nn.Module:
        """The module with its gradients averaged over ranks. Buffers stay each rank's own: rank 0's are saved.

        `graphed`: its steps will be recorded as a CUDA graph.
        """
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # broadcast_buffers has a new name, which torch 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            if graphed:  # PyTorch's rules for recording it: made on a side stream, with gradients that stay in place
                with torch.cuda.stream(torch.cuda.Stream()):
                    return DistributedDataParallel(
                        module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
                    )
            # static_graph: parameters that a mechanism never uses are found once, not searched for in every step.
            return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, static_graph=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sums over all ranks, in float64, through the CPU."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def from_main(self, values: Sequence[float]) -> list[float]:
        """Rank 0's values, on every rank."""
        if self.world_size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run `action` on rank 0 alone (its result is there); an error of it ends the other ranks too."""
        result, error = None, None
        if self.is_main:
            try:
                result = action()
            except S2tdptError as caught:
                error = caught
        (failed,) = self.from_main([float(error is not None)])
        if error is not None:
            raise error
        if failed:
            raise TrainingError("rank 0 could not go on; its message says why")
        return result

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`; None: this rank's GPU where there is one, else the CPU. Raises `InputError`."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {str(name)!r} is unknown: use cpu, cuda or cuda:1")
    if device.type == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= found:
        raise InputError(f"device 'cuda:{index}' is not here: CUDA devices found: {found}; use --device cpu")
    return torch.device("cuda", index)


@contextmanager
def join(device: str | torch.device | None = None) -> Iterator[Ranks]:
    """Meet the other processes of this `torchrun` (gloo on the CPU, nccl between GPUs), and part at the end."""
    place = pick_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Ranks(place)
        return
    ours = not dist.is_initialized()
    if ours:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # its watchdog breaks recordings of CUDA graphs
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(place, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
