"""The gate before every figure: what is timed must compute what the equations say, on this device, now.

Rounding flips single spikes, so a model is compared in float32 with TF32 off, where few do; what the recording of a
CUDA graph adds is compared with the same kernels run one by one. Each operator, with every option and in every dtype,
is the business of the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import ours
from benchmarks.common import Case, Red
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.numerics import exact

IMAGES = 16
LOSS, GRADIENT, MEDIAN_GRADIENT = 1e-3, 2e-2, 1e-3  # a flipped spike moves these by less, a wrong kernel by more
LOGITS, MOVED = 1e-3, 0.25  # that share of the images may meet a flipped spike on their way
REPLAYED_LOSS = 5e-2  # in bfloat16, where other kernels, not only other numbers, would spread through all spikes


def error_ratio(found: Tensor, truth: Tensor, least: float = 0.0) -> float:
    """‖found − truth‖ / ‖truth‖, infinite where it is not a number; `least` is the smallest norm to divide by."""
    truth = truth.double()
    ratio = float((found.double() - truth).norm() / truth.norm().clamp(min=max(least, 1e-30)))
    return ratio if ratio == ratio else float("inf")


def require(what: str, value: float, tolerance: float) -> None:
    if not value <= tolerance:
        raise Red(f"{what} is off by {value:.1e}, more than {tolerance:.0e}")


@contextmanager
def untuned() -> Iterator[None]:
    """Products and convolutions in float32 proper, the latter by cuDNN's first choice."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with exact():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def training(case: Case) -> None:
    """The fused model's loss and every gradient against the plain one's; the recorded step against the unrecorded."""
    x, target = ours.batch(case, min(IMAGES, case.batch))
    losses, gradients = [], []
    for implementation in ("plain", "fused"):
        model = ours.build(case, implementation)
        with untuned():
            loss = F.cross_entropy(model(x), target)
            loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    require("fused training: the loss", error_ratio(losses[1], losses[0]), LOSS)
    compare_gradients(*gradients)
    steps = [ours.Training(case, graph=graph) for graph in (False, True)]
    for step in steps:
        step()
    first, recorded = (torch.tensor(step.losses()) for step in steps)
    require("the recorded training step: its loss", error_ratio(recorded, first), REPLAYED_LOSS)


def compare_gradients(truth: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Each parameter's by error ratio; a bias's over its weight's: before BatchNorm it is nothing but rounding."""
    if missing := truth.keys() ^ found.keys():
        raise Red(f"fused training: only one implementation has a gradient for {min(missing)}")
    errors = {}
    for name, gradient in truth.items():
        weight = truth.get(name.removesuffix("bias") + "weight", gradient)
        errors[name] = error_ratio(found[name], gradient, least=float(weight.norm()) if name.endswith("bias") else 0.0)
    worst = max(errors, key=lambda name: errors[name])
    require(f"fused training: the gradient of {worst}", errors[worst], GRADIENT)
    require("fused training: the median gradient", median(errors.values()), MEDIAN_GRADIENT)


def inference(case: Case, timed: ours.Inference) -> None:
    """The fused model's logits against the plain one's in float32; those of the recorded run against its kernels'."""
    x, _ = ours.batch(case)
    plain, fused = (ours.evaluated(case, name) for name in ("plain", "fused"))
    with untuned():
        truth, found = (ours.inferring(model, x, "float32")() for model in (plain, fused))
    same_images("fused inference", found, truth)
    same_images("recorded inference", timed(), timed.unrecorded())


def packed_inference(case: Case, timed: ours.PackedInference) -> None:
    """Packed spikes against the plain model in float64, with the weights in 8 bits that hold them exactly.

    With membranes in float32, since those in half precision flip spikes, as bfloat16 does; then the recorded run
    against its kernels.
    """
    from s2tdpt.inference.packed import PackedEngine

    plain = ours.in_eight_bits(ours.evaluated(case, "plain"))
    x = timed.x[:IMAGES]
    with torch.inference_mode():
        found = PackedEngine(plain, membrane=torch.float32)(x, case.time_steps)
        truth = ours.inferring(plain.double(), x.double(), "float32")()
        same_images("packed inference", found, truth)
        require("recorded packed inference", error_ratio(timed(), timed.unrecorded()), 0.0)


def same_images(what: str, found: Tensor, truth: Tensor) -> None:
    """Logits [B, K] that agree but for few images."""
    errors = [error_ratio(a, b) for a, b in zip(found, truth, strict=True)]
    moved = sum(not error <= LOGITS for error in errors) / len(errors)
    if moved > MOVED:
        raise Red(f"{what}: the logits of {moved:.0%} of the images differ by more than {LOGITS:.0e}")


def tensors(what: str, found: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float) -> None:
    """Tensors by error ratio, the worst one counts."""
    require(what, max(error_ratio(a, b) for a, b in zip(found, truth, strict=True)), tolerance)


def same_on_all(ranks: Ranks, model: torch.nn.Module) -> None:
    """After the timed steps every rank holds the same weights."""
    total = sum(float(p.detach().double().sum()) for p in model.parameters())
    apart = abs(ranks.sum([total])[0] - ranks.world_size * ranks.from_main([total])[0])
    require("data parallel training: weights between ranks", apart / max(abs(total), 1e-30), 1e-12)
