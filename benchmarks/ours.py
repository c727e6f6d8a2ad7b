"""What is timed of this library: the step that `s2tdpt train` runs, and inference."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.common import Case, Run
from benchmarks.limits import Ceilings, Floor, Layer, layers, model_work, packed_work
from benchmarks.timing import graphed
from s2tdpt.models import create_model
from s2tdpt.models.transformer import SpikingTransformer
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.numerics import precise
from s2tdpt.training.optim import build_optimizer
from s2tdpt.training.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from s2tdpt.training.step import TrainStep, reestimate_batch_norm

SMOKE = {"embed_dim": 16, "depth": 1, "num_heads": 2, "stem_channels": (8,), "stem_pool": (False, False)}


def build(case: Case, implementation: str = "fused") -> SpikingTransformer:
    """The model with the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = SMOKE if case.smoke else {}
        model = create_model("s2tdpt_4_384", time_steps=case.time_steps, **options).to(case.device)
    model = cast(SpikingTransformer, model.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
    model.implementation = implementation
    return model


def batch(case: Case, images: int | None = None) -> tuple[Tensor, Tensor]:
    """The same random images [B, 3, H, W] and classes [B] at each call."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images or case.batch, 3, case.image, case.image, generator=generator)
    target = torch.randint(0, 10, (len(x),), generator=generator)
    return x.to(case.device).contiguous(memory_format=torch.channels_last), target.to(case.device)


class Training:
    """One AdamW step of `s2tdpt train`, whole: with `graph`, recorded once as a CUDA graph and replayed."""

    def __init__(self, case: Case, *, graph: bool, ranks: Ranks | None = None) -> None:
        recipe = Recipe(
            name="benchmark",
            model=ModelRecipe("s2tdpt_4_384"),
            data=DataRecipe("none", batch_size=case.batch),
            optimizer=OptimizerRecipe("adamw"),
            precision=case.precision,
            cuda_graph=graph,
        )
        self.model = build(case)
        self.x, self.target = batch(case)
        self.step = TrainStep(
            self.model, build_optimizer(self.model, recipe.optimizer), recipe, ranks or Ranks(case.device)
        )

    def __call__(self) -> None:
        self.step(self.x, self.target)
        if self.step.full:
            self.step.take_report()

    def losses(self) -> list[float]:
        """Of the steps since the last look."""
        return [loss for loss, _ in self.step.take_report()]


def inferring(model: nn.Module, x: Tensor, precision: str) -> Run:
    """The logits of one batch."""

    def run() -> Tensor:
        with torch.inference_mode(), precise(x.device, precision):
            return model(x)

    return run


def evaluated(case: Case, implementation: str = "fused") -> SpikingTransformer:
    """The model in evaluation mode, with BatchNorm's statistics measured on the batch: else hardly a neuron fires."""
    model = build(case, "plain")
    reestimate_batch_norm(model, [batch(case)[0]], case.device, "float32")
    model.implementation = implementation
    return model.eval()


class Inference:
    """The logits of one batch in the timed precision, recorded once as a CUDA graph and replayed."""

    def __init__(self, case: Case) -> None:
        self.unrecorded = inferring(evaluated(case), batch(case)[0], case.precision)
        self.recorded = graphed(case, self.unrecorded)

    def __call__(self) -> Tensor:
        return self.recorded()


@torch.no_grad()
def in_eight_bits(model: SpikingTransformer) -> SpikingTransformer:
    """Every matrix and kernel rounded to 8-bit levels, one scale a channel, so that integer products are exact."""
    for weight in model.parameters():
        if weight.ndim > 1:
            scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / 127
            weight.copy_((weight / scale).round() * scale)
    return model


class PackedInference:
    """The logits of one batch on packed spikes, as `compile_for_inference` gives them on a GPU, weights in 8 bits."""

    def __init__(self, case: Case) -> None:
        from s2tdpt.inference.packed import PackedEngine  # which needs Triton

        self.engine = PackedEngine(in_eight_bits(evaluated(case, "plain")))
        self.x, self.time_steps = batch(case)[0], case.time_steps

    def __call__(self) -> Tensor:
        return self.engine(self.x, self.time_steps)

    @torch.no_grad()
    def unrecorded(self) -> Tensor:
        return self.engine.logits(self.x, self.time_steps)


def packed_floor(case: Case, ceilings: Ceilings) -> Floor:
    """The least that inference on packed spikes takes on this machine."""
    return Floor.of(packed_work(_layers(case)[1], images=case.batch), ceilings, case.batch)


def floor(case: Case, ceilings: Ceilings, *, training: bool, size: int = 2) -> Floor:
    """The least that the model's step or inference takes on this machine."""
    model, found = _layers(case)
    weights = sum(p.numel() for p in model.parameters())
    works = model_work(found, training=training, size=size, images=case.batch, weights=weights)
    return Floor.of(works, ceilings, case.batch)


def _layers(case: Case) -> tuple[SpikingTransformer, list[Layer]]:
    cpu = Case(case.name, torch.device("cpu"), 1, smoke=case.smoke, time_steps=case.time_steps, image=case.image)
    model = build(cpu, "plain").eval()
    return model, layers(model, batch(cpu)[0])
