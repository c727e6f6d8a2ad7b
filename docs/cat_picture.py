"""The cat of README.md, named and explained: python docs/cat_picture.py [MODEL]

Writes docs/img/cat.png, the photograph that scikit-image bundles (Chelsea, by Stéfan van der Walt, public domain), and
docs/img/cat-gradcam.png. MODEL has been trained on CIFAR-10: s2tdpt_4_384.cifar10, or a run's folder. Then
`python -m results.tables` puts both into README.md. Needs the extra `explain` and scikit-image (extra `test`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from s2tdpt.cli import subject
from s2tdpt.errors import S2tdptError, require
from s2tdpt.explain import firing_rates, grad_cam

FOLDER = Path(__file__).resolve().parent / "img"
MODEL = "s2tdpt_4_384.cifar10"
TOP = 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", default=MODEL)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help="default: docs/img")
    asked = parser.parse_args(argv)
    try:
        photo = require("skimage.data", "test").chelsea()
        require("matplotlib", "explain")
        asked.out.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(asked.out / "cat.png")
        answer = draw(asked.model, asked.out / "cat.png", asked.out / "cat-gradcam.png")
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{answer}: wrote {asked.out / 'cat-gradcam.png'}")
    return 0


def draw(model: str, photo: Path, out: Path) -> str:
    """Draw what speaks for the model's answer over the photograph; the answer, as `s2tdpt predict` prints it."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    net, card = subject.load(model, "cpu", None)
    seen = subject.read(net, card, photo)
    x = subject.normalise(net, card, seen[None])
    with torch.no_grad():
        best = net(x).softmax(-1)[0].topk(TOP)
    names = subject.classes(net, card)
    ranked = [(names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    answer = "  ".join(f"{name} {probability:.1%}" for name, probability in ranked)

    with Image.open(photo) as image:
        picture = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        picture = picture.view(image.height, image.width, 3)
    maps = {
        "Grad-CAM, last attention": (grad_cam(net, x, site="attention").maps.clamp(min=0), "inferno"),
        "Grad-CAM, last block": (grad_cam(net, x).maps.clamp(min=0), "inferno"),
        "firing rate of attention": (firing_rates(net, x).maps, "viridis"),
    }
    figure = Figure(figsize=(11, 1.9), layout="constrained")
    first, second, *others = figure.subplots(1, 2 + len(maps), width_ratios=(1.5, 1, 1.5, 1.5, 1.5))
    first.imshow(picture)
    first.set_title(f"{ranked[0][0]}, {ranked[0][1]:.0%}", fontsize=10)
    second.imshow(seen.permute(1, 2, 0))
    second.set_title("what the model sees", fontsize=10)
    for axes, (title, (values, colours)) in zip(others, maps.items(), strict=True):
        axes.imshow(_over(picture, values, colormaps[colours]))
        axes.set_title(title, fontsize=10)
    for axes in figure.axes:
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(False)
    figure.savefig(out, dpi=110, metadata={"model": _name(model, card), "answer": answer})
    return answer


def _over(picture: Tensor, values: Tensor, colours: Callable[..., Any]) -> Tensor:
    """A map [1, h, w] of tokens over a grey photograph uint8 [H, W, 3]: the higher, the more of its colour."""
    size = tuple(picture.shape[:2])
    large = F.interpolate(values.detach()[None], size=size, mode="bilinear", align_corners=False)[0, 0]
    level = (large - large.min()) / (large.max() - large.min()).clamp_min(1e-9)
    colour = torch.from_numpy(colours(level.numpy())[..., :3])
    grey = picture.double().mean(-1, keepdim=True) / 255
    share = 0.75 * level[..., None]
    return (1 - share) * grey + share * colour


def _name(model: str, card: dict[str, Any]) -> str:
    """The model as README.md names it: a path says nothing to others."""
    return f"{card['model']}.{card['data']['name']}" if Path(model).exists() else model


if __name__ == "__main__":
    sys.exit(main())
