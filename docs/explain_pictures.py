"""Draws the two pictures of docs/explain.md: python docs/explain_pictures.py [MODEL]

MODEL has been trained on digits: s2tdpt_tiny.digits, or a run's folder such as runs/demo/s2tdpt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from s2tdpt import data
from s2tdpt.explain import firing_rates, grad_cam, record_attention, window_curve
from s2tdpt.models import load_model

FOLDER = Path(__file__).parent / "img"
DIGITS = 8


def window(model: torch.nn.Module, x: torch.Tensor) -> None:
    """The window of the first block, and the attention maps of its first head step by step."""
    record = record_attention(model, x[:1])[0]
    m, w = window_curve(record.window, record.query.shape[-1])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    curve, *maps = figure.subplots(1, 4, width_ratios=(2.2, 1, 1, 1))
    curve.plot(m[m <= 0], w[0, m <= 0], ".-", color="#b9560f", label="key fired first: depression")
    curve.plot(m[m > 0], w[0, m > 0], ".-", color="#1f63b0", label="query fired first: potentiation")
    curve.set(xlabel="m = query's spikes − key's spikes", ylabel="attention weight w", ylim=(0, 1.2))
    curve.legend(frameon=False, loc="upper left")
    images = [
        axes.imshow(weights, vmin=w.min(), vmax=w.max())
        for axes, weights in zip(maps, record.weights()[1:, 0, 0], strict=True)
    ]
    for axes, step in zip(maps, (2, 3, 4), strict=True):
        axes.set(title=f"head 1, step {step}", xlabel="key token", xticks=(), yticks=())
    maps[0].set_ylabel("query token")
    figure.colorbar(images[0], ax=maps, shrink=0.6, label="w")
    figure.savefig(FOLDER / "stdp-window.png", dpi=110)


def maps(model: torch.nn.Module, x: torch.Tensor, pictures: torch.Tensor) -> None:
    """Digits with their Grad-CAM and firing-rate maps."""
    rows = {
        "image": (pictures[:, 0], "gray"),
        "Grad-CAM,\nlast attention": (grad_cam(model, x, site="attention").upsampled.clamp(min=0), "inferno"),
        "Grad-CAM,\nlast block": (grad_cam(model, x).upsampled.clamp(min=0), "inferno"),
        "firing rate": (firing_rates(model, x).maps, "viridis"),
    }
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    grid = figure.subplots(len(rows), DIGITS)
    for line, (name, (values, colours)) in zip(grid, rows.items(), strict=True):
        for axes, value in zip(line, values, strict=True):
            axes.imshow(value, cmap=colours)
            axes.set(xticks=(), yticks=())
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(FOLDER / "explain-digits.png", dpi=110)


def main() -> None:
    model, _ = load_model(sys.argv[1] if len(sys.argv) > 1 else "s2tdpt_tiny.digits")
    test = data.load("digits", "test")
    # the first test image of each of the first classes
    chosen = torch.stack([(test.labels == label).nonzero()[0, 0] for label in range(DIGITS)])
    pictures = test.images[chosen]
    x = (pictures / 255 - torch.tensor(test.mean).view(-1, 1, 1)) / torch.tensor(test.std).view(-1, 1, 1)
    FOLDER.mkdir(exist_ok=True)
    window(model, x)
    maps(model, x, pictures)


if __name__ == "__main__":
    main()
