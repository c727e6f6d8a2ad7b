"""Distillation: a trained teacher looks at the same augmented images, and the student learns its opinion too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2tdpt.data import ImageSet
from s2tdpt.errors import RecipeError, S2tdptError
from s2tdpt.models import load_model
from s2tdpt.training.recipe import DistillRecipe
from s2tdpt.training.sources import how_to_make, located


class Distillation:
    """(1 - weight) · cross-entropy + weight · T² · KL(teacher ‖ student), both softened by temperature T (Hinton 2015).

    The teacher stays in evaluation mode and has no gradient. `scale` and `bias` [C, 1, 1] turn images normalised for
    the student into those that the teacher was trained on; `source` says which file it came from. With `views` = K > 0
    the run's images repeat after K epochs, and so does what the teacher said of them: it is asked once.
    """

    def __init__(
        self, teacher: nn.Module, recipe: DistillRecipe, scale: Tensor, bias: Tensor, source: dict[str, Any]
    ) -> None:
        self.teacher = teacher.requires_grad_(False).eval()
        self.weight, self.temperature, self.views, self.source = recipe.weight, recipe.temperature, recipe.views, source
        self.scale, self.bias = scale, bias
        self._same_images = bool((scale == 1).all() and (bias == 0).all())
        self._said: dict[tuple[int, int], Tensor] = {}

    def blend(self, loss: Tensor, logits: Tensor, opinion: Tensor) -> Tensor:
        """The loss, from the cross-entropy, the student's logits [B, K] and the teacher's."""
        student, teacher = (F.log_softmax(z.float() / self.temperature, dim=1) for z in (logits, opinion))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence

    def view(self, epoch: int) -> int:
        """The epoch whose augmented images this epoch shows."""
        return epoch % self.views if self.views else epoch

    def opinion(self, x: Tensor, place: tuple[int, int] | None) -> Tensor:
        """The teacher's logits [B, K] of images x [B, C, H, W] at (epoch, step); with `views`, asked once a place."""
        if not self.views or place is None:
            return self.ask(x)
        place = self.view(place[0]), place[1]
        if place not in self._said:
            self._said[place] = self.ask(x)
        return self._said[place]

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """The teacher's logits [B, K] of images x [B, C, H, W] as the student sees them."""
        return self.teacher(x if self._same_images else torch.addcmul(self.bias, x, self.scale))


def load_distillation(recipe: DistillRecipe, data: ImageSet, device: torch.device) -> Distillation:
    """The teacher that a recipe names, on `device`; `RecipeError` if it is not there or was trained for other data."""
    path = located(recipe.teacher)
    try:
        teacher, card = load_model(path, device=str(device))
    except (S2tdptError, OSError) as error:
        raise RecipeError(f"distill.teacher: {error}{how_to_make(path)}") from error
    config: Any = teacher.config
    about = card.get("data", {})
    theirs, ours = list(about.get("classes", data.classes)), list(data.classes)
    if config.num_classes != len(ours) or theirs != ours:
        what = f"{config.num_classes} classes of {about.get('name', 'other data')}, not the {len(ours)} of {data.name}"
        raise RecipeError(f"distill.teacher: {recipe.teacher} knows {what}")
    if config.in_channels != data.channels:
        what = f"{config.in_channels} channels, but the images of {data.name} have {data.channels}"
        raise RecipeError(f"distill.teacher: {recipe.teacher} takes {what}")
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (data.mean, data.std))
    their_mean, their_std = (
        torch.tensor(about.get(key, ours), dtype=torch.float64).view(-1, 1, 1)
        for key, ours in (("mean", data.mean), ("std", data.std))
    )
    if device.type == "cuda":
        teacher = teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    scale, bias = std / their_std, (mean - their_mean) / their_std
    source = {"teacher": recipe.teacher, "sha256": card.get("sha256"), "model": card.get("model")}
    return Distillation(teacher, recipe, scale.float().to(device), bias.float().to(device), source)
