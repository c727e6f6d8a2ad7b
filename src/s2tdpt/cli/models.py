"""`models`."""

from __future__ import annotations

from typing import Any

from s2tdpt import text
from s2tdpt.cli import options
from s2tdpt.cli.options import Json


def models(json: Json = None) -> None:
    """List the models, and which come with trained weights.

    \b
    Examples:
      s2tdpt models
      s2tdpt models --json models.json
    """
    import torch

    from s2tdpt.models import create_model, list_models

    trained = list_models(pretrained=True)
    entries: list[dict[str, Any]] = []
    for name in list_models():
        with torch.device("meta"):  # geometry without memory
            net: Any = create_model(name)
        entries.append(
            {
                "name": name,
                "family": net.config.family,
                "parameters": sum(weight.numel() for weight in net.parameters()),
                "blocks": net.config.depth,
                "embed_dim": net.config.embed_dim,
                "num_heads": net.config.num_heads,
                "time_steps": net.config.time_steps,
                "classes": net.config.num_classes,
                "trained": name in trained,
            }
        )
    rows = [
        [
            entry["name"],
            entry["family"],
            f"{entry['parameters']:,}",
            *(str(entry[key]) for key in ("blocks", "embed_dim", "num_heads", "time_steps", "classes")),
            "yes" if entry["trained"] else "",
        ]
        for entry in entries
    ]
    head = ["model", "family", "parameters", "blocks", "width", "heads", "time steps", "classes", "weights"]
    with options.saved(json, {"models": entries}):
        print(text.table(head, rows))
