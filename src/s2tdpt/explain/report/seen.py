"""The report's sections on single images: predictions, Grad-CAM, and whether the maps are faithful."""

from __future__ import annotations

import torch
from torch import Tensor

from ..faithfulness import Faithfulness, compare_faithfulness
from ..firing import firing_rates
from ..gradcam import grad_cam
from ..probe import blocks
from . import charts, page, pictures
from .material import Material

POINTS, DRAWS = 12, 4


def examples(m: Material) -> page.Html:
    """The images with what the model takes them for."""
    figures = []
    for index in range(m.shown):
        row = m.probabilities[index]
        best = m.predictions[index]
        caption = f"<strong>{page.text(m.class_name(best))}</strong> {100 * row[best].item():.1f} %"
        if m.labels is not None:
            right = m.labels[index] == best
            told = "✓ right" if right else f"✗ is {m.class_name(m.labels[index])}"
            caption += f'<br><span class="{"good" if right else "bad"}">{page.text(told)}</span>'
        elif len(row) > 1:
            second = int(row.topk(2).indices[1])
            caption += f"<br>then {page.text(m.class_name(second))} {100 * row[second].item():.1f} %"
        alt = f"{m.image_name(index)} with probability {row[best].item():.2f}"
        figures.append(page.figure(page.image(pictures.picture(m.picture(index)), alt), page.Html(caption)))
    return page.join([page.paragraph(_lead(m), "lead"), page.tiles(figures)])


def gradcam(m: Material) -> page.Html:
    """One row an image, one column for each block's attention output and each block's output."""
    model, x = m.seen
    x = x[: m.shown]
    columns: dict[str, Tensor] = {}
    for block in range(len(blocks(model))):
        columns[f"block {block + 1} attention"] = grad_cam(model, x, block=block, site="attention").maps
        columns[f"block {block + 1} output"] = grad_cam(model, x, block=block).maps
    rows = []
    for index in range(m.shown):
        line = [page.image(pictures.picture(m.picture(index)), m.image_name(index))]
        for name, maps in columns.items():
            alt = f"Grad-CAM at {name}, {m.image_name(index)}: {_place(maps[index])}"
            line.append(page.image(pictures.overlay(m.picture(index), maps[index]), alt))
        rows.append((m.class_name(m.predictions[index]), line))
    lead = (
        "Where the evidence for the predicted class sits: bright tokens speak for it. “Attention” is what a block's "
        "attention adds to the membrane, “output” the membrane that leaves the block; all maps are means over steps."
    )
    if m.spiking:
        lead += " At the last block's output Grad-CAM is exactly the classic class activation map."
    caption = page.Html(f"Each map relative to its own peak: {page.scale('none', 'most', 'inferno')}")
    table = page.picture_table(["image", *columns], rows, caption)
    return page.join([page.paragraph(lead, "lead"), table])


def faithful(m: Material) -> page.Html:
    """Deletion and insertion curves of three maps against the same random rankings."""
    model, x = m.seen
    parts = [x[i : i + 32] for i in range(0, len(x), 32)]
    last = len(blocks(model))
    maps = {
        f"Grad-CAM, block {last} output": torch.cat([grad_cam(model, part).maps for part in parts]),
        f"Grad-CAM, block {last} attention": torch.cat([grad_cam(model, p, site="attention").maps for p in parts]),
    }
    if m.spiking:
        maps["firing rate"] = torch.cat([firing_rates(model, part).maps for part in parts])
    results = compare_faithfulness(model, x, maps, points=POINTS, draws=DRAWS)
    rows = []
    for name, r in results.items():
        better = int((r["margins"] > 0).sum())
        rows.append(
            (
                name,
                f"{r['deletion_auc']:.3f}",
                f"{r['random_deletion_auc']:.3f}",
                f"{r['insertion_auc']:.3f}",
                f"{r['random_insertion_auc']:.3f}",
                _margin(r),
                f"{better} of {len(x)}",
            )
        )
    head = ("map", "deletion", "random", "insertion", "random", "margin", "images better")
    caption = (
        f"Area under the curve, mean over {len(x)} image{'s' if len(x) > 1 else ''}; ± is the standard deviation over "
        "images. Deletion: lower is better. Insertion: higher is better."
    )
    lead = (
        "Patches are taken away from the image, or put back into a blurred one, in the order of a map. If the map is "
        "right, the probability of the class falls sooner, or rises sooner, than in a random order. The margin is how "
        "much area is gained over random, mean of both curves."
    )
    name, result = next(iter(results.items()))
    drawn = [
        page.figure(_curves(result, kind, name), f"{kind.capitalize()} in the order of {name}, against random order.")
        for kind in ("deletion", "insertion")
    ]
    return page.join([page.paragraph(lead, "lead"), page.charts(drawn), page.table(head, rows, caption, numbers=6)])


def _curves(result: Faithfulness, kind: str, name: str) -> page.Html:
    ours, random = (result["deletion"], result["random_deletion"])
    if kind == "insertion":
        ours, random = (result["insertion"], result["random_insertion"])
    curves = {label: (curve.mean(0).tolist(), _error(curve)) for label, curve in ((name, ours), ("random", random))}
    label = (
        f"{kind.capitalize()} curve: area {result[f'{kind}_auc']:.3f}, random order {result[f'random_{kind}_auc']:.3f}"
    )
    verb = "removed" if kind == "deletion" else "put back"
    return charts.curve_with_spread(result["fractions"].tolist(), curves, label, f"fraction of patches {verb}")


def _error(curve: Tensor) -> list[float]:
    """Standard error over images at each point."""
    if len(curve) < 2:
        return [0.0] * curve.shape[1]
    return (curve.std(0) / len(curve) ** 0.5).tolist()


def _margin(result: Faithfulness) -> str:
    return f"{result['margin']:+.3f} ± {result['margin_std']:.3f}".replace("-", "−")


def _lead(m: Material) -> str:
    total = 0 if m.x is None else len(m.x)
    shown = "One image" if m.shown == 1 else f"{m.shown} images"
    lead = f"{shown} and what the model takes {'it' if m.shown == 1 else 'them'} for."
    if total > m.shown:
        lead += f" Firing rates and faithfulness below are measured on all {total} images of this report."
    return lead


def _place(values: Tensor) -> str:
    """Where the peak of a token map is, for people who cannot see it."""
    if not bool((values > 0).any()):
        return "no token speaks for it"
    row, column = divmod(int(values.argmax()), values.shape[1])
    return f"peak at row {row + 1} of {values.shape[0]}, column {column + 1} of {values.shape[1]}"
