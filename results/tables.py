"""Writes the tables of README.md and docs/ from results/: python -m results.tables [--check]

A table stands between <!-- table: NAME --> and <!-- /table -->. `--check` writes nothing and exits with 1 where a
table, a CSV file or a picture is older than the runs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from results import card, rows
from results.blocks import BLOCKS, Material
from s2tdpt.errors import DataError, S2tdptError

DOCUMENTS = ("README.md", "docs/accuracy.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
HINT = "python -m results.add --all && python -m results.plots && python -m results.tables"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    parser.add_argument("--root", type=Path, default=rows.RESULTS.parent, metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    try:
        material = Material.read(asked.root)
        wanted = dict(documents(asked.root, material))
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        if not asked.check:
            for path in stale:
                path.write_text(wanted[path], encoding="utf-8")
            print("\n".join(f"wrote {path.relative_to(asked.root)}" for path in stale) or "nothing to do")
            return 0
        stale += [*old_csv(asked.root / "results"), *old_pictures(asked.root)]
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"stale: {path.relative_to(asked.root)}", file=sys.stderr)
    if stale:
        print(f"to bring them up to date: {HINT}", file=sys.stderr)
    return 1 if stale else 0


def documents(root: Path, material: Material) -> Iterable[tuple[Path, str]]:
    """Every document, and the model card of all weights, with the text that it should have."""
    for name in DOCUMENTS:
        path = root / name
        if path.exists():
            yield path, filled(path.read_text(encoding="utf-8"), material, name)
    for name, content in material.cards.items():
        size = (root / "weights" / f"{name}.safetensors").stat().st_size
        yield root / "weights" / f"{name}.md", card.text(name, content, size, material.runs)


def filled(text: str, material: Material, source: str) -> str:
    """`text` with every table made anew."""

    def table(match: re.Match[str]) -> str:
        block: Callable[[Material, str], str] | None = BLOCKS.get(match[2])
        if block is None:
            raise DataError(f"{source}: no table is called {match[2]!r}: use one of {', '.join(BLOCKS)}")
        content = block(material, source).strip("\n")
        return f"{match[1]}{content}\n{match[4]}" if content else match[1] + match[4]

    return MARKED.sub(table, text)


def old_csv(results: Path) -> Iterable[Path]:
    """CSV files that are not what the runs' folders say."""
    for name, text in rows.texts(results).items():
        path = results / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path


def old_pictures(root: Path) -> Iterable[Path]:
    """Pictures that were drawn from other figures than those of today."""
    from results.plots import PICTURES, up_to_date

    for name, picture in PICTURES.items():
        path = root / "docs" / "img" / f"{name}.png"
        if not up_to_date(picture, root / "results", path):
            yield path


if __name__ == "__main__":
    sys.exit(main())
