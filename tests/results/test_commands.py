"""Every run in results/ can be trained again: its command, at its commit, gives its recipe."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from results import add, rows
from s2tdpt.training.recipe import Recipe, load_recipe, parse_overrides

ROOT = Path(__file__).parents[2]


def recipe_of(command: str, commit: str) -> Recipe | None:
    """What a command line trains at a commit; None where it names a file."""
    words = shlex.split(command)
    words = words[words.index("train") + 1 :]
    if words[0].endswith(".yaml"):
        return None
    base = add.recipe_at(commit, words[0])
    assert base is not None, f"no recipe was called {words[0]} at {commit}"
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    changes = parse_overrides(value for option, value in pairs if option == "--set")
    seeds = {int(value) for option, value in pairs if option == "--seed"}
    return base.replace(**changes, seed=seeds.pop() if seeds else base.seed)


def git(*arguments: str) -> str | None:
    """What git says of this checkout; None where it knows nothing."""
    asked = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def test_every_command_gives_the_recipe_of_its_run_at_its_commit() -> None:
    """All of them where the history is whole; of a shallow clone, or a copy without git, as many as it reaches."""
    whole = git("rev-parse", "--is-shallow-repository") == "false"
    runs, ablation = rows.collect(ROOT / "results")
    for row in [*runs, *ablation]:
        known = git("cat-file", "-e", f"{row.commit}^{{commit}}") is not None
        assert known or not whole, f"{row.run}: no commit {row.commit}"
        recipe = recipe_of(row.command, row.commit) if known else None
        if recipe is not None:
            assert recipe == load_recipe(ROOT / "results" / row.run / "recipe.yaml"), row.run


def test_a_commit_that_git_does_not_know_means_today() -> None:
    assert add.recipe_at("0" * 40, "digits") == load_recipe("digits")
    assert add.recipe_at(None, "digits") == load_recipe("digits")
    assert add.recipe_at(None, "no such") is None
