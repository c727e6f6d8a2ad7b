"""The peer: SpikingJelly's Spikformer of the same geometry, eager and under torch.compile. Nothing else imports it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import ours
from benchmarks.common import Case, Run
from benchmarks.timing import Contestant, prepared
from s2tdpt.errors import MissingExtraError
from s2tdpt.training.numerics import precise
from s2tdpt.training.step import reestimate_batch_norm

KINDS = ("eager", "compiled")
SMOKE: dict[str, Any] = {
    "T": 2, "img_size_h": 4, "img_size_w": 4, "patch_size": 4, "num_classes": 10, "embed_dims": 16, "num_heads": 2,
    "depths": 1,
}  # fmt: skip


def _spikingjelly() -> tuple[Any, Any]:
    """Its models and its functions."""
    try:
        parts = ("spikingjelly.activation_based.model.spikformer", "spikingjelly.activation_based.functional")
        models, functional = (importlib.import_module(part) for part in parts)
    except ImportError as error:
        hint = "pip install h5py loguru SciencePlots; pip install --no-deps spikingjelly==2.0.0 (or --no-peers)"
        raise MissingExtraError(f"the peer SpikingJelly cannot be imported ({error}): {hint}") from error
    return models, functional


class Peer:
    """spikformer_cifar10, with SpikingJelly's neurons reset before each batch, as it asks for."""

    def __init__(self, case: Case, kind: str = "eager") -> None:
        models, self.functional = _spikingjelly()
        torch.manual_seed(0)
        self.model: nn.Module = models.Spikformer(**SMOKE) if case.smoke else models.spikformer_cifar10()
        self.model.to(case.device)
        call: Any = self.model
        if kind == "compiled":
            call = torch.compile(self.model, backend="eager" if case.smoke else "inductor")
        self.call: Callable[[Tensor], Tensor] = call
        self.case = case
        x, self.target = ours.batch(case)
        self.x = x.contiguous()

    def logits(self, precision: str) -> Tensor:
        """[B, K], the mean over time steps."""
        self.functional.reset_net(self.model)
        with precise(self.case.device, precision):
            return self.call(self.x).mean(0)

    def training(self) -> Run:
        """One AdamW step, as ours."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.logits(self.case.precision).float(), self.target).backward()
            optimizer.step()

        return run

    def inference(self, precision: str | None = None) -> Run:
        """The logits of one batch in evaluation mode, with BatchNorm's statistics measured on it."""
        self.functional.reset_net(self.model)
        reestimate_batch_norm(self.model, [self.x], self.case.device, "float32")
        self.model.eval()

        def run() -> Tensor:
            with torch.inference_mode():
                return self.logits(precision or self.case.precision)

        return run


def contestant(case: Case, make: Callable[[Peer], Run], kind: str = "eager") -> Contestant:
    """A peer prepared, its weights weighed too."""
    _spikingjelly()
    return prepared(case, f"SpikingJelly {version('spikingjelly')} {kind}", lambda: make(Peer(case, kind)))


def contestants(case: Case, make: Callable[[Peer], Run]) -> Iterator[Contestant | None]:
    """Each peer, the one that is ready at once first; only None where none is wanted."""
    if not case.peers:
        yield None
        return
    for kind in KINDS:
        yield contestant(case, make, kind)
