"""One training step, compiled or not: nothing in it waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from s2tdpt.errors import TrainingError
from s2tdpt.training.distill import Distillation
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.graph import GraphedStep
from s2tdpt.training.numerics import precise, scoring
from s2tdpt.training.optim import Optimizers
from s2tdpt.training.recipe import Recipe

SYNC_EVERY = 20
"""Steps between two looks at the report, each of which waits for the device."""


class Loss(nn.Module):
    """Model and loss as one module: what is compiled, and what data parallelism wraps."""

    def __init__(
        self, model: nn.Module, device: torch.device, precision: str, distillation: Distillation | None = None
    ) -> None:
        super().__init__()
        self.model, self.distillation = model, distillation
        self.device, self.precision = device, precision

    def forward(self, x: Tensor, target: Tensor, opinion: Tensor | None = None) -> Tensor:
        """Mean loss of images [B, C, H, W] against classes [B] or soft labels [B, K], and a teacher's logits [B, K]."""
        with precise(self.device, self.precision):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), target)
        if self.distillation is None or opinion is None:
            return loss
        return self.distillation.blend(loss, logits, opinion)


class TrainStep:
    """Forward, backward and update. What each step gave stays on the device until `take_report` fetches all at once."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        recipe: Recipe,
        ranks: Ranks,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self.optimizers, self.recipe, self.ranks = model, optimizers, recipe, ranks
        self.distillation = distillation
        loss = Loss(model, ranks.device, recipe.precision, distillation)
        if recipe.compile:
            torch._dynamo.reset()  # models of earlier runs count towards its limit of variants
            loss.compile(dynamic=False)
        graphed = recipe.cuda_graph and ranks.device.type == "cuda"
        self.loss = ranks.wrap(loss, graphed=graphed)
        self._report = torch.zeros(SYNC_EVERY, 2, device=ranks.device)
        self._filled = 0
        self.graph = GraphedStep(self._run, self._state) if graphed else None

    def __call__(self, x: Tensor, target: Tensor, place: tuple[int, int] | None = None) -> None:
        """One step on the batch at `place`, (epoch, step within it), by which a teacher may remember it."""
        inputs = self._inputs(x, target, place)
        report = self._run(*inputs) if self.graph is None else self.graph(*inputs, key=self.model.time_steps)
        self._report[self._filled].copy_(report)
        self._filled += 1

    def _inputs(self, x: Tensor, target: Tensor, place: tuple[int, int] | None) -> tuple[Tensor, ...]:
        if x.is_cuda and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.distillation is None:
            return x, target
        with precise(self.ranks.device, self.recipe.precision):
            return x, target, self.distillation.opinion(x, place)

    def _run(self, *inputs: Tensor) -> Tensor:
        """The whole step; (loss, gradient norm) as one tensor."""
        loss = self._backward(*inputs)
        params = self.optimizers.parameters()
        # Spikes hide a NaN from the loss (NaN >= threshold is no spike), never from the gradient.
        norm = nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])
        if self.recipe.optimizer.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(params, self.recipe.optimizer.clip_grad_norm, norm)
        self.optimizers.step()
        self.optimizers.zero_grad()
        return torch.stack([loss.detach(), norm])

    def _state(self) -> Iterator[Tensor]:
        """Every tensor that a step changes."""
        yield from self.model.state_dict().values()
        yield from self.optimizers.state_dict().values()

    def _backward(self, *inputs: Tensor) -> Tensor:
        loss = self.loss(*inputs)
        loss.backward()
        return loss

    @property
    def full(self) -> bool:
        """True when the report has to be taken before the next step."""
        return self._filled == SYNC_EVERY

    def take_report(self) -> list[tuple[float, float]]:
        """(loss, gradient norm) of each step since the last call, averaged over ranks.

        Waits for the device; all ranks call it together.
        """
        values = self.ranks.sum(self._report[: self._filled].flatten().tolist())
        self._filled = 0
        values = [value / self.ranks.world_size for value in values]
        return list(zip(values[::2], values[1::2], strict=True))

    def close(self) -> None:
        """Let go of what was recorded, before the processes part."""
        if self.graph is not None:
            self.graph.clear()

    def finite_weights(self) -> bool:
        """False if any weight is NaN or infinite. Waits for the device."""
        norms = torch._foreach_norm(list(self.model.parameters()))  # pyright: ignore[reportPrivateImportUsage]
        return bool(torch.stack(norms).isfinite().all()) if norms else True

    def warm_up(self, x: Tensor, target: Tensor, time_steps: Iterable[int]) -> None:
        """Compile or record for each number of time steps, on one batch, leaving the training state as it was."""
        inputs = self._inputs(x, target, None)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        before = self.model.time_steps
        self.model.train()
        for steps in time_steps:
            set_time_steps(self.model, steps)
            if self.graph is not None:
                self.graph.record(*inputs, key=steps)
                continue
            self._backward(*inputs)
            self.optimizers.zero_grad()
        self.model.time_steps = before
        for buffer, value in buffers:
            buffer.copy_(value)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)


def set_time_steps(model: nn.Module, time_steps: int) -> None:
    """Let `model` run so many steps from now on."""
    model.time_steps = time_steps  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor], device: torch.device, precision: str) -> None:
    """Replace every running mean and variance by its plain average over `batches` of images, as a score has it."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for x in batches if norms else ():
        with scoring(device, precision):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@contextmanager
def memory_advice(recipe: Recipe, where: str) -> Iterator[None]:
    """Turn running out of memory into a `TrainingError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        key = "eval_batch_size" if where == "evaluation" else "batch_size"
        value = getattr(recipe.data, key)
        hints = f"lower data.{key} (now {value}, try {math.ceil(value / 2)})"
        if recipe.precision == "float32" and where != "evaluation":
            hints += " or set precision: bfloat16"
        if recipe.distill is not None and recipe.distill.views and where != "evaluation":
            hints += f" or distill.views (now {recipe.distill.views}: a teacher's answers are kept on the device)"
        raise TrainingError(f"out of memory in {where}: {hints}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """True for what CUDA, the CPU allocator and Python raise when memory runs out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
