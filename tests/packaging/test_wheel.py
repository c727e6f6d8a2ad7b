"""What the wheel and the source archive hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(dist.glob("*.whl")))


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/s2tdpt").rglob("*.py")}
    assert sources <= names
    assert "s2tdpt/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"s2tdpt"}


@pytest.mark.parametrize(("folder", "endings"), [("recipes", ["yaml"]), ("weights", ["safetensors", "json", "md"])])
def test_wheel_holds_recipes_and_weights(wheel: zipfile.ZipFile, folder: str, endings: list[str]) -> None:
    for ending in endings:
        files = list((ROOT / folder).glob(f"*.{ending}"))
        assert files
        for file in files:
            assert wheel.read(f"s2tdpt/{folder}/{file.name}") == file.read_bytes()


def test_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith("/METADATA")).rpartition("/")[0]
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "s2tdpt = s2tdpt.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_source_archive_can_build_and_test_itself(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["Makefile", "constraints.txt", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"]
    wanted += [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")]
    for folder, endings in (
        ("benchmarks", ("py", "csv")),
        ("results", ("py", "csv", "json", "yaml")),
        ("docs", ("md",)),
    ):
        wanted += [str(path.relative_to(ROOT)) for ending in endings for path in (ROOT / folder).rglob(f"*.{ending}")]
    assert set(wanted) <= names
