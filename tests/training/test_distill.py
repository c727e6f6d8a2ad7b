"""Distillation: the loss it adds, the teacher that never changes, and the teachers that do not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s2tdpt.data import ImageSet, load
from s2tdpt.errors import CheckpointError, RecipeError
from s2tdpt.models import create_model, load_weights, save_weights
from s2tdpt.training.distill import Distillation, load_distillation
from s2tdpt.training.distributed import Ranks
from s2tdpt.training.engine import train
from s2tdpt.training.recipe import DistillRecipe, Recipe
from s2tdpt.training.setup import Setup
from s2tdpt.training.step import Loss, TrainStep

from .interrupting import stop_at

CPU = torch.device("cpu")


@pytest.fixture
def taught(tiny: Recipe, teacher: Path) -> Recipe:
    changes = {"distill.teacher": str(teacher), "schedule.time_steps": "1:1,2:1", "checkpoint_every_minutes": 0}
    return tiny.replace(**changes)


@pytest.fixture
def images(tiny: Recipe) -> ImageSet:
    return load(tiny.data.name, "train", progress=False)


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(recipe, out, device="cpu", progress=False, **options)


def tensors(out: Path) -> dict[str, Tensor]:
    return load_weights(out / "model")[0].state_dict()


def test_the_loss_is_hintons(teacher: Path, images: ImageSet) -> None:
    torch.manual_seed(0)
    recipe = DistillRecipe(str(teacher), weight=0.3, temperature=3.0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    distillation = load_distillation(recipe, images, CPU)
    x, target = torch.randn(5, 3, 8, 8), torch.rand(5, 2).softmax(1)
    loss = Loss(student, CPU, "float32", distillation)(x, target, distillation.ask(x))

    logits, opinion = student(x), load_weights(teacher.with_suffix(""))[0].eval()(x)
    p, q = (opinion / 3).softmax(1), (logits / 3).softmax(1)
    expected = 0.7 * -(target * logits.log_softmax(1)).sum(1) + 0.3 * 9 * (p * (p.log() - q.log())).sum(1)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-5, atol=1e-6)

    loss.backward()
    assert student[1].weight.grad is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert all(p.grad is None and not p.requires_grad for p in distillation.teacher.parameters())


def test_the_teacher_never_leaves_evaluation_mode(taught: Recipe) -> None:
    parts = Setup.build(taught, Ranks(CPU), None, False)
    assert parts.distillation is not None
    teacher = parts.distillation.teacher
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    parts.train_step.loss.train()
    parts.train_step(*next(parts.loader.epoch(0)))
    assert parts.model.training
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())


def test_the_teacher_sees_images_normalised_as_it_learnt_them(teacher: Path, images: ImageSet) -> None:
    ours = dataclasses.replace(images, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    seen: list[Tensor] = []
    for data in (images, ours):
        distillation = load_distillation(DistillRecipe(str(teacher)), data, CPU)
        distillation.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        pixels = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
        distillation.ask((pixels - mean) / std)
    torch.testing.assert_close(seen[1], seen[0])


def save_teacher(path: Path, images: ImageSet, *, classes: list[str], channels: int = 3) -> str:
    model = create_model("vit_tiny", num_classes=len(classes), in_channels=channels, depth=1)
    data = {"name": "others", "mean": images.mean, "std": images.std, "classes": classes}
    save_weights(model, path, meta={"model": "vit_tiny", "data": data})
    return f"{path}.safetensors"


def test_teachers_that_do_not_fit_are_refused(images: ImageSet, tmp_path: Path) -> None:
    def refused(teacher: str) -> str:
        with pytest.raises(RecipeError, match=r"^distill\.teacher: ") as caught:
            load_distillation(DistillRecipe(teacher), images, CPU)
        return str(caught.value)

    assert "knows 3 classes of others, not the 2 of" in refused(
        save_teacher(tmp_path / "a", images, classes=["a", "b", "c"])
    )
    assert "knows 2 classes of others" in refused(save_teacher(tmp_path / "b", images, classes=["dark", "bright"]))
    assert "takes 1 channels" in refused(save_teacher(tmp_path / "c", images, classes=images.classes, channels=1))
    assert "is unknown" in refused("vit_tinny")
    assert "has no weights" in refused("vit_tiny")
    assert "is missing" in refused(str(tmp_path / "nowhere.safetensors"))


def test_a_run_learns_from_its_teacher_and_says_from_which(taught: Recipe, tmp_path: Path) -> None:
    metrics = run(taught, tmp_path / "taught")
    run(taught.replace(distill=None), tmp_path / "alone")
    a, b = tensors(tmp_path / "taught"), tensors(tmp_path / "alone")
    assert a.keys() == b.keys()
    assert not torch.equal(a["blocks.0.mlp.fc1.weight"], b["blocks.0.mlp.fc1.weight"])
    assert taught.distill is not None
    card = json.loads(Path(taught.distill.teacher).with_suffix(".json").read_text())
    assert metrics["distill"] == {
        "teacher": taught.distill.teacher,
        "sha256": card["sha256"],
        "model": "vit_tiny",
    }


@pytest.mark.parametrize("views", [0, 1])
def test_a_resumed_run_is_exact_and_wants_the_same_teacher(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Path, images: ImageSet, views: int
) -> None:
    # Stopped in the first epoch, so that the second one asks for answers kept after the resumption.
    taught = taught.replace(**{"distill.views": views, "schedule.time_steps": "1:2,2:1"})
    run(taught, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(taught, tmp_path / "run")

    kept = {path: path.read_bytes() for path in (teacher, teacher.with_suffix(".json"))}
    try:
        save_teacher(teacher.with_suffix(""), images, classes=images.classes)
        with pytest.raises(CheckpointError, match="was trained with another teacher"):
            run(taught, tmp_path / "run", resume=True)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    run(taught, tmp_path / "run", resume=True)
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == resumed


def test_a_spiking_teacher_can_teach_too(taught: Recipe, tmp_path: Path) -> None:
    run(taught.replace(distill=None), tmp_path / "teacher")
    metrics = run(taught.replace(**{"distill.teacher": str(tmp_path / "teacher")}), tmp_path / "student")
    assert metrics["distill"]["model"] == "s2tdpt_tiny"


def test_the_teacher_is_no_part_of_what_ranks_wrap_and_what_trains(taught: Recipe) -> None:
    parts = Setup.build(taught, Ranks(CPU), None, False)
    trained = [p.data_ptr() for p in parts.train_step.loss.parameters()]
    assert trained == [p.data_ptr() for p in parts.model.parameters()]


def test_views_repeat_the_images_and_ask_the_teacher_once(
    taught: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five epochs of two views, over a change of T: what is shown and said in the first two comes back in turn."""
    asked: list[Tensor] = []
    steps: list[tuple[Tensor, ...]] = []
    ask, run_step = Distillation.ask, TrainStep._run

    def note_ask(self: Distillation, x: Tensor) -> Tensor:
        asked.append(x.clone())
        return ask(self, x)

    def note_step(self: TrainStep, *inputs: Tensor) -> Tensor:
        steps.append(tuple(tensor.clone() for tensor in inputs))
        return run_step(self, *inputs)

    monkeypatch.setattr(Distillation, "ask", note_ask)
    monkeypatch.setattr(TrainStep, "_run", note_step)
    augmented = {"augment.flip": True, "augment.shift": 2, "schedule.time_steps": "1:3,2:2"}
    run(taught.replace(**augmented, **{"distill.views": 2}), tmp_path / "run")
    each = len(steps) // 5
    assert each * 5 == len(steps)
    assert len(asked) == 2 * each
    for i, (x, target, opinion) in enumerate(steps):
        x0, target0, opinion0 = steps[i % (2 * each)]
        assert torch.equal(x, x0)
        assert torch.equal(target, target0)
        assert torch.equal(opinion, opinion0)
    assert not torch.equal(steps[0][0], steps[each][0])

    repeated = steps[:]
    steps.clear()
    run(taught.replace(**augmented), tmp_path / "fresh")
    for (x, target, _), (x0, target0, _) in zip(steps[: 2 * each], repeated[: 2 * each], strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(target, target0)
    assert not torch.equal(steps[0][0], steps[2 * each][0])


def test_answers_are_kept_in_the_precision_of_training_and_by_place_alone(taught: Recipe) -> None:
    parts = Setup.build(taught.replace(**{"distill.views": 1, "precision": "bfloat16"}), Ranks(CPU), None, False)
    assert parts.distillation is not None
    x, target = next(parts.batches(0))
    parts.train_step.warm_up(x, target, [1])
    parts.train_step(x, target)
    assert not parts.distillation._said
    parts.train_step(x, target, (3, 1))
    ((place, opinion),) = parts.distillation._said.items()
    assert place == (0, 1)
    assert opinion.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(opinion, parts.distillation.ask(x))
