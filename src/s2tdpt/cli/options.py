"""Options that several commands share, their completion, and what the commands do alike."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

if TYPE_CHECKING:
    from torch import nn


def complete_models(incomplete: str) -> list[str]:
    """Registry names, and finished runs under runs/."""
    from s2tdpt.models import list_models

    runs = sorted(str(card.parent) for card in Path("runs").glob("*/model.json"))
    return [name for name in [*list_models(), *runs] if name.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    return [name for name in ("cifar10", "cifar100", "digits", "folder:") if name.startswith(incomplete)]


def complete_tables(incomplete: str) -> list[str]:
    from s2tdpt.energy.tables import TABLES

    return [name for name in TABLES if name.startswith(incomplete)]


def complete_recipes(incomplete: str) -> list[str]:
    """Named recipes, and YAML files here."""
    from s2tdpt.training.recipe import list_recipes

    files = sorted(str(path) for path in Path().glob("*.yaml"))
    return [name for name in [*list_recipes(), *files] if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name with weights (see `s2tdpt models`) or the folder of a finished run.",
        autocompletion=complete_models,
        show_default=False,
    ),
]
Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", help="Pictures, or folders of pictures.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cifar10, cifar100, digits or folder:PATH; without it, what the model was trained on.",
        autocompletion=complete_data,
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where the data lies or is downloaded to; default: $S2TDPT_DATA, else the user's cache.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, …; default: a GPU if there is one.", show_default=False),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Use only N images, evenly spaced over the set.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Images at once.")]
TimeSteps = Annotated[
    int | None,
    typer.Option(metavar="T", min=1, help="Steps the model runs; default: as it was trained.", show_default=False),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the figures to FILE; docs/cli.md has the keys.", show_default=False
    ),
]


@contextmanager
def progress(model: nn.Module, total: int, what: str) -> Iterator[None]:
    """A progress bar that counts the images for which `model` gives an answer; only on a terminal."""
    with tqdm(total=total, desc=what, unit="image", leave=False, disable=None) as bar:
        hook = model.register_forward_hook(lambda _module, _inputs, output: bar.update(len(output)) and None)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def saved(path: Path | None, figures: dict[str, Any]) -> Iterator[None]:
    """Write all of `figures` to `path`, or leave what is there; the block prints them, also where that failed."""
    if path is None:
        yield
        return
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path.is_relative_to("/dev") or path.is_fifo():  # a stream: never replaced, even where it leads to a file
        yield
        sys.stdout.flush()
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
        return
    failure = None
    try:
        _replace(path.resolve(), text)  # a link stays one
    except OSError as error:
        failure = error
    yield
    if failure is not None:
        raise failure


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
