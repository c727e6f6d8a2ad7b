"""What a newcomer sees first: help, version and completion."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s2tdpt import __version__

COMMANDS = ["train", "compact", "evaluate", "predict", "energy", "explain", "models", "demo"]


def test_bare_command_and_help_list_every_command(cli) -> None:
    assert cli().output == cli("--help").output
    for command in COMMANDS:
        assert f"\n  {command} " in cli().output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_and_documented_options(cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert f"    s2tdpt {command}" in result.output
    options = result.output.partition("Options:")[2]
    for line in options.splitlines():
        if line.strip().startswith("--"):
            assert len(line.split("  ")) > 2 or line.startswith("  --"), line


def test_version(cli) -> None:
    assert cli("--version").output == f"s2tdpt {__version__}\n"


def test_help_needs_no_torch() -> None:
    code = "import sys; from s2tdpt.cli.app import app; app(['train', '--help'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RECIPE" in done.stdout


def test_missing_typer_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from s2tdpt.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr == "error: the command line needs typer: pip install typer\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ev", {"evaluate"}),
        ("evaluate vit_t", {"vit_tiny"}),
        ("evaluate s2tdpt_tiny.d", {"s2tdpt_tiny.digits"}),
        ("evaluate runs/fi", {"runs/first"}),
        ("train cifar10_f", {"cifar10_fast"}),
        ("train mi", {"mine.yaml"}),
        ("evaluate x --data cifar", {"cifar10", "cifar100"}),
        ("energy x --table pa", {"paper"}),
    ],
)
def test_tab_completes_names(cli, tmp_path, monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/model.json").touch()
    (tmp_path / "mine.yaml").touch()
    words = f"s2tdpt {typed}"
    env = {"_S2TDPT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert set(cli(env=env).output.split()) == offered
