"""README.md and docs/: what they show runs as it stands, the options exist, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from s2tdpt.cli.app import app
from s2tdpt.models import list_models
from s2tdpt.training.recipe import load_recipe, parse_overrides

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for folder in (".", "docs", "results", "benchmarks", "recipes", "weights") for path in
             sorted((ROOT / folder).glob("*.md"))]  # fmt: skip
OLD = re.compile(r"^# .* commit \w+\)$")  # above the command of a run: options are those of that commit


def blocks(language: str) -> list[Any]:
    """The fenced blocks of a language, each with the name of its document."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(block, id=f"{path.relative_to(ROOT)}:{number}")
        for path in DOCUMENTS
        for number, block in enumerate(pattern.findall(path.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs_as_it_stands(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    shutil.copy(ROOT / "docs/img/cat.png", tmp_path / "photo.png")  # the reader's own, in model cards
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "document", "exec"), {"__name__": "document"})


@pytest.mark.parametrize("block", blocks("sh"))
def test_command_lines_are_understood(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    before = ""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if "s2tdpt" in words and "pip" not in words and not OLD.match(before):
            name, *arguments = words[words.index("s2tdpt") + 1 :]
            given = commands[name].make_context(name, list(arguments)).params  # parsed, not run
            recipe, model = given.get("recipe"), given.get("model", "")
            if recipe and not recipe.startswith(("runs/", "carried/")):
                load_recipe(recipe).replace(**parse_overrides(given["changes"] or []))
            assert model.startswith("runs/") or model in ("", *list_models())
        before = line


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            file, _, anchor = target.partition("#")
            found = (path.parent / file) if file else path
            assert found.exists(), f"{path.relative_to(ROOT)}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target
