"""Spiking Grad-CAM: which tokens speak for a class, at each block's attention output and at each block's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, require
from ..models.dispatch import module_by_module
from .probe import blocks, check_images, evaluating, token_grid, watching

Site = Literal["block", "attention"]


@dataclass(frozen=True)
class CamMaps:
    """Class evidence of each token: `maps` [B, h, w] = mean over steps of `per_step` [T, B, h, w]; `target` [B].

    `upsampled` [B, H, W] has the size of the images. Values are signed: positive evidence speaks for the target.
    """

    maps: Tensor
    upsampled: Tensor
    per_step: Tensor
    target: Tensor


def grad_cam(
    model: nn.Module, x: Tensor, *, block: int = -1, site: Site = "block", target: int | Tensor | None = None
) -> CamMaps:
    """Grad-CAM (Selvaraju et al. 2017, by captum's LayerGradCam) of images x [B, C, H, W] or [T, B, C, H, W].

    `site` is the block's output (the membrane potential that leaves it) or what its attention adds to the membrane.
    `target` is a class, one a image [B], or the prediction. Each step has gradients of its own: the channels' weights
    are averaged over the token grid only, and the steps' maps are averaged at the end. At the last block the gradient
    is head weight / (T·N), so the map is the classic CAM / (T·N), and blind to what attention did: look at
    `site="attention"` too. Raises `InputError` for a block or class that does not exist.
    """
    layer_grad_cam = require("captum.attr", "explain").LayerGradCam
    check_images(x)
    layers = blocks(model)
    if not -len(layers) <= block < len(layers):
        raise InputError(f"grad_cam: block {block} does not exist: the model has {len(layers)} blocks")
    if site not in ("block", "attention"):
        raise InputError(f"grad_cam: site is 'block' or 'attention', got {site!r}")
    layer = layers[block] if site == "block" else layers[block].attn
    view = _TokensAsImage(*token_grid(model, x))
    with evaluating(model), torch.inference_mode(False):
        x = x.detach().clone()
        with torch.no_grad():
            logits = model(x)
        target = resolve_target(target, logits)
        with module_by_module(model), watching({"layer": layer}, lambda _, output: view(output)):
            evidence = layer_grad_cam(model, view.probe).attribute(x, target=target)
    batch = logits.shape[0]
    per_step = evidence.detach().view(-1, batch, *evidence.shape[-2:])
    maps = per_step.mean(0)
    return CamMaps(maps, upsample(maps, x.shape[-2:]), per_step, target)


@torch.no_grad()
def class_activation_map(model: Any, x: Tensor, *, target: int | Tensor | None = None) -> Tensor:
    """Classic CAM (Zhou et al. 2016) [B, h, w]: head weights of the target class times the last block's mean over T."""
    check_images(x)
    with evaluating(model):
        features = model.forward_features(x)
        target = resolve_target(target, model(x))
    mean = features.mean(0) if features.ndim == 4 else features  # [B, N, D]
    return torch.einsum("bnd,bd->bn", mean, model.head.weight[target]).view(-1, *token_grid(model, x))


def upsample(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Token maps [B, h, w] at the images' size [B, H, W], bilinear."""
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)


class _TokensAsImage:
    """Shows captum tokens [(T,) B, N, D] as an image batch [T·B, D, h, w] on their way.

    Captum averages gradients over all dimensions after the second: with T in front it would average over channels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.probe = nn.Identity()

    def __call__(self, tokens: Tensor) -> Tensor:
        image = tokens.reshape(-1, *tokens.shape[-2:]).transpose(1, 2).unflatten(2, (self.height, self.width))
        return self.probe(image).flatten(2).transpose(1, 2).reshape(tokens.shape)


def resolve_target(target: int | Tensor | None, logits: Tensor) -> Tensor:
    """Classes [B] to explain: the given one or ones, or the predictions of `logits` [B, K]."""
    if target is None:
        return logits.argmax(-1)
    batch, classes = logits.shape
    wanted = torch.as_tensor(target, dtype=torch.int64, device=logits.device)
    if wanted.ndim > 1 or (wanted.ndim == 1 and len(wanted) != batch):
        raise InputError(f"explain: target is one class, or one for each of {batch} images, got {list(wanted.shape)}")
    if int(wanted.min()) < 0 or int(wanted.max()) >= classes:
        raise InputError(f"explain: target class {wanted.tolist()} is outside 0..{classes - 1}")
    return wanted.expand(batch).contiguous()
