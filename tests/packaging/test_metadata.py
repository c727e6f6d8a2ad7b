"""The files around the code agree with it and with one another."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import s2tdpt

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# torch, numpy and the readers of files and recipes; everything else is imported where it is used
OPTIONAL = ["captum", "matplotlib", "pooch", "rich", "scipy", "skimage", "sklearn", "tensorboard", "triton", "typer"]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement.strip())[0].lower().replace("_", "-")


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert {importlib.metadata.version("s2tdpt"), str(citation["version"]), newest[1]} == {s2tdpt.__version__}


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2511.14691"


def test_every_requirement_is_pinned() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {name_of(line) for line in lines if "==" in line}
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {name_of(requirement) for requirement in wanted} - {"s2tdpt"} <= pinned


def test_imports_without_the_optional_packages() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); from s2tdpt import data, energy, explain, models"
    )
    code += "; from s2tdpt.training import engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
