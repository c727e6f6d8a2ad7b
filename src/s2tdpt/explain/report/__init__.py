"""One self-contained HTML page that shows what a model does: no network, no scripts, pictures inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import InputError
from . import measured, page, seen, spikes
from .material import Material, as_inputs

MAX_BYTES = 6_000_000

_Build = Callable[[Material], page.Html]
# key: title, builder, what it needs
SECTIONS: dict[str, tuple[str, _Build, str]] = {
    "summary": ("Summary", measured.summary, ""),
    "training": ("Training", measured.training, "history"),
    "energy": ("Energy by layer", measured.energy, "energy"),
    "firing": ("Firing rates", spikes.firing, "spikes"),
    "examples": ("Predictions", seen.examples, "images"),
    "gradcam": ("Grad-CAM", seen.gradcam, "images"),
    "faithfulness": ("Deletion and insertion", seen.faithful, "images"),
    "firing-map": ("Firing-rate map", spikes.firing_map, "spikes"),
    "window": ("STDP window", spikes.window, "spikes"),
    "attention": ("STDP attention", spikes.attention, "spikes"),
    "rasters": ("Spike rasters", spikes.rasters, "spikes"),
    "limits": ("Limits", measured.limits, ""),
    "made": ("How it was made", measured.made, ""),
}


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    labels: Tensor | Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    energy: Any = None,
    ann_metrics: Mapping[str, Any] | None = None,
    ann_energy: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sections: Iterable[str] | None = None,
    show: int = 8,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file of at most 6 MB; every part is optional, and a section without its part is left out.

    images: uint8 [B, C, H, W] (normalised with `mean`, `std`) or the model's float inputs; the first `show` become
    pictures, all of them count for firing rates and faithfulness. metrics: fractions and mJ, keys as in metrics.json.
    history: rows of log.csv. energy, ann_energy: an `EnergyReport` or its `to_dict()`. `sections` picks from
    `SECTIONS`; sections on spikes say so where the model is an ANN. Raises `InputError` for what does not fit.
    """
    wanted = list(SECTIONS) if sections is None else list(sections)
    unknown = [key for key in wanted if key not in SECTIONS]
    if unknown:
        raise InputError(f"report: no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if images is not None and model is None:
        raise InputError("report: images need the model that looks at them")
    x, shown = (None, None) if images is None or model is None else as_inputs(images, mean, std, model)
    if labels is not None:
        labels = [int(label) for label in labels]
        if x is not None and len(labels) != len(x):
            raise InputError(f"report: {len(x)} images but {len(labels)} labels")
    material = Material(
        model=model,
        x=x,
        pictures=shown,
        labels=labels,
        classes=classes,
        metrics=metrics or {},
        ann_metrics=ann_metrics or {},
        history=list(history or ()),
        energy=_plain(energy),
        ann_energy=_plain(ann_energy),
        show=show,
        command=command,
        notes=notes,
    )
    built = [page.Section(key, SECTIONS[key][0], body) for key in wanted if (body := _body(material, key)) is not None]
    document = page.page(title, _facts(material), built, "Made by s2tdpt. One file: keep it, mail it, open it offline.")
    data = document.encode()
    if len(data) > MAX_BYTES:
        raise InputError(f"report: {len(data):,} bytes are more than {MAX_BYTES:,}: show fewer images than {show}")
    return _write(Path(path), data)


def _write(path: Path, data: bytes) -> Path:
    """The whole file or none: a report that was there before survives a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _body(m: Material, key: str) -> page.Html | None:
    """The section, a sentence where the model cannot have it, or None where its part is missing."""
    _, build, needs = SECTIONS[key]
    if (needs == "history" and not m.history) or (needs == "energy" and m.energy is None):
        return None
    if needs in ("images", "spikes") and not m.has_images:
        return None
    if needs == "spikes" and not m.spiking:
        return page.paragraph("This model is an ANN: it has no spikes to show.", "lead")
    return build(m)


def _plain(report: Any) -> Mapping[str, Any] | None:
    return report if report is None or isinstance(report, Mapping) else report.to_dict()


def _facts(m: Material) -> str:
    """The line under the title: what the model is."""
    facts = []
    config = getattr(m.model, "config", None)
    if config is not None:
        kind = f"{config.attention} attention" if m.spiking else "ANN, softmax attention"
        facts += [kind, f"{config.depth} blocks of width {config.embed_dim}", f"{config.num_heads} heads"]
    if m.has_images:
        rows, columns = m.grid
        facts.append(f"{rows} × {columns} tokens")
    return " · ".join(facts)
