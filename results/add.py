"""Takes finished runs into results/ and their rows into accuracy.csv: python -m results.add RUN …

RUN is the folder that `s2tdpt train` wrote. Its recipe, log and metrics are copied to results/RECIPE/seedN, with
measured.json where `python -m results.measure RUN` has been there; the row is appended, or replaced. Then
`python -m results.tables` and `python -m results.plots` bring tables and pictures up to date.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import rows
from results.goals import read_goals
from s2tdpt.errors import DataError, RecipeError, S2tdptError
from s2tdpt.training import _yaml
from s2tdpt.training.checkpoint import write_atomic
from s2tdpt.training.folder import LOG, METRICS, MODEL, RECIPE, first_difference
from s2tdpt.training.recipe import RUNS, Recipe, list_recipes, load_recipe, parse_overrides
from s2tdpt.training.sources import folder_of, is_named


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="a run's folder, here or under results/")
    parser.add_argument("--commit", help="that trained it, where metrics.json does not say (default: $S2TDPT_COMMIT)")
    parser.add_argument(
        "--goal", help="rows of goals.csv that the run counts for, '2 3' (default: by its recipe); '' for none"
    )
    parser.add_argument("--variant", help="name of the run, where it departs from recipes/RECIPE.yaml")
    parser.add_argument("--ablation", metavar="ITEM", help="the run belongs to the ablation, under this name")
    parser.add_argument("--command", help="that trained it (default: found by comparing with recipes/RECIPE.yaml)")
    parser.add_argument("--note", help="what else is to be known of the run")
    parser.add_argument("--minutes-before", type=float, help="of runs that it goes on from, where they are not here")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what results.measure wrote on another machine")
    parser.add_argument("--all", action="store_true", help="only write the CSV files anew, from all runs in results/")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if not asked.runs and not asked.all:
        parser.error("name at least one RUN, or --all")
    try:
        for run in asked.runs:
            print(take(run, asked.results, asked))
        rows.update(asked.results)
    except (S2tdptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def take(run: Path, root: Path, asked: argparse.Namespace) -> str:
    """Copy what is kept of a run to its place under `root`, and say so in one line."""
    metrics = rows.read_json(run / METRICS)
    if not metrics:
        raise DataError(f"{run} holds no {METRICS}: it is no finished run")
    recipe = load_recipe(run / RECIPE)
    source = recipe.initial_weights  # where it lies here
    files = {name: (run / name).read_bytes() for name in (RECIPE, LOG, METRICS)}
    if portable(recipe) != recipe:
        recipe = portable(recipe)
        rename_sources(metrics, recipe)
        files |= {RECIPE: recipe.to_yaml().encode(), METRICS: _json(metrics)}
    place = _place(run, root, recipe, asked, metrics["hardware"]["count"])
    before = rows.read_json(place / rows.PROVENANCE)
    known = {"goal": before.get("goal", _goal(recipe, place, root))} | rows.read_json(run / rows.PROVENANCE)
    given = {key: getattr(asked, key) for key in ("goal", "note", "commit", "command", "minutes_before")}
    known |= {key: value for key, value in given.items() if value is not None}
    known["commit"] = known.get("commit") or metrics["commit"] or os.environ.get("S2TDPT_COMMIT")
    if not known["commit"]:
        raise DataError(f"{run} does not say which commit trained it: name it with --commit")
    if "minutes_before" not in known and (minutes := minutes_of_sources(source, metrics, run)):
        known["minutes_before"] = minutes
    processes = metrics["hardware"]["count"]
    known["command"] = known.get("command") or command(recipe, place, processes, known["commit"])
    measured = rows.read_json(asked.measured or run / rows.MEASURED)
    measured.pop("confusion", None)  # of the files that ship only
    weights = rows.read_json(run / f"{MODEL}.json").get("sha256")
    if measured and weights and measured.get("sha256") != weights:
        raise DataError(f"{asked.measured or run / rows.MEASURED} was measured on other weights than {run} holds")
    files[rows.PROVENANCE] = _json(known)
    files |= {rows.MEASURED: _json(measured)} if measured else {}
    if not asked.ablation and (sibling := _taught_otherwise(place, metrics)) is not None:
        raise DataError(f"{run} was taught by another teacher than {sibling}: name it with --variant")
    verb = "replaced" if (place / METRICS).exists() else "added"
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(place / name, content)
    if not measured:  # those of a run that was here before
        (place / rows.MEASURED).unlink(missing_ok=True)
    row = rows.from_folder(place, root)
    return f"{verb} {row.run}: {row.top1_last:.2%} on {row.data} ({row.evaluated_on}), {row.minutes:.1f} minutes"


def minutes_of_sources(source: str | None, metrics: Mapping[str, Any], run: Path) -> float:
    """Of the runs that `run` goes on from, one after another; 0 where it begins itself, or with a named model."""
    if source is None or is_named(source):
        return 0.0
    folder = folder_of(source)
    theirs, card = rows.read_json(folder / METRICS), rows.read_json(folder / f"{MODEL}.json")
    told = metrics.get("initial_weights", {}).get("sha256")
    if not theirs or told not in (None, card.get("sha256")):
        what = "is not here" if not theirs else "holds other weights now"
        raise DataError(f"{run} goes on from {source}, which {what}: say with --minutes-before what that took")
    earlier = minutes_of_sources(load_recipe(folder / RECIPE).initial_weights, theirs, folder)
    return earlier + theirs["train_seconds"] / 60


def command(recipe: Recipe, place: Path, processes: int = 1, commit: str | None = None) -> str:
    """The command line that trains `recipe`: by the name of a recipe that ships and what differs from it at `commit`.

    Where that cannot be said, by the file kept in `place`, which is RECIPE/RUN under results/.
    """
    several = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    base = recipe_at(commit, recipe.name)
    if base is not None:
        changes = list(_changes(base.to_dict(), recipe.replace(seed=base.seed).to_dict()))
        words = [*several, "s2tdpt", "train", recipe.name, "--seed", str(recipe.seed)]
        try:
            if base.replace(**parse_overrides(changes), seed=recipe.seed) == recipe:
                return shlex.join(words + [word for change in changes for word in ("--set", change)])
        except RecipeError:
            pass
    return shlex.join([*several, "s2tdpt", "train", f"results/{place.parent.name}/{place.name}/{RECIPE}"])


def recipe_at(commit: str | None, name: str) -> Recipe | None:
    """The recipe of that name as it shipped at a commit; today's where git does not know the commit or the file."""
    try:
        asked = ["git", "-C", str(rows.RESULTS), "show", f"{commit}:recipes/{name}.yaml"]
        text = subprocess.run(asked, capture_output=True, check=True, timeout=20).stdout.decode()
        return Recipe.from_dict(_yaml.parse(text, name))
    except (OSError, subprocess.SubprocessError, RecipeError):
        return load_recipe(name) if name in list_recipes() else None


def rename_sources(metrics: dict[str, Any], recipe: Recipe) -> None:
    """Let a run's metrics name its teacher and its initial weights as `recipe` does."""
    if recipe.distill is not None and "distill" in metrics:
        metrics["distill"] = metrics["distill"] | {"teacher": recipe.distill.teacher}
    if "initial_weights" in metrics:
        metrics["initial_weights"] = metrics["initial_weights"] | {"source": recipe.initial_weights}


def portable(recipe: Recipe) -> Recipe:
    """The recipe with runs/NAME for folders, of a teacher or of initial weights, that only one machine has."""
    named = {"initial_weights": recipe.initial_weights}
    if recipe.distill is not None:
        named["distill.teacher"] = recipe.distill.teacher
    absolute = {key: Path(name) for key, name in named.items() if name and Path(name).is_absolute()}
    return recipe.replace(**{key: str(Path(RUNS, *_run_of(path))) for key, path in absolute.items()})


def _run_of(path: Path) -> tuple[str, ...]:
    """A run's folder, or a file in it, without what is above the folder."""
    return path.parts[-2:] if path.suffix == ".safetensors" else path.parts[-1:]


def _place(run: Path, root: Path, recipe: Recipe, asked: argparse.Namespace, processes: int) -> Path:
    """Where a run is kept; a run that is there already stays there. Processes that share a batch are no departure."""
    if run.resolve().parents[1] == root.resolve():
        return root / run.resolve().relative_to(root.resolve())
    if asked.ablation:
        return root / rows.ABLATION_RUNS / f"{asked.ablation}-seed{recipe.seed}"
    if recipe.name in list_recipes() and not asked.variant:
        base = load_recipe(recipe.name)
        whole = recipe.replace(**{"data.batch_size": recipe.data.batch_size * processes})
        difference = first_difference(base.replace(seed=recipe.seed), whole) or _cut(base, recipe)
        if difference is not None:
            shipped = f"recipes/{recipe.name}.yaml"
            raise DataError(f"{run} departs from {shipped} in {difference}: name it with --variant (or --ablation)")
    return root / recipe.name / "-".join(filter(None, [asked.variant, f"seed{recipe.seed}"]))


def _taught_otherwise(place: Path, metrics: Mapping[str, Any]) -> Path | None:
    """Another seed of the run to be kept in `place`, whose teacher was not the same weights."""
    name = place.name.rpartition("seed")[0]
    for other in sorted(place.parent.glob(f"{name}seed[0-9]*")):
        theirs = rows.read_json(other / METRICS).get("distill")
        if other != place and theirs and theirs["sha256"] != metrics.get("distill", theirs)["sha256"]:
            return other
    return None


def _cut(base: Recipe, recipe: Recipe) -> str | None:
    """How the clock of `recipe` is shorter than that of `base`; None where it is as long, longer or absent."""
    usual, own = (math.inf if each.max_minutes is None else each.max_minutes for each in (base, recipe))
    return f"max_minutes ({base.max_minutes!r}, not {recipe.max_minutes!r})" if own < usual else None


def _goal(recipe: Recipe, place: Path, root: Path) -> str:
    """The goals that the recipe as it ships is meant for, by a blank between them."""
    meant = (goal.goal for goal in read_goals(root) if (goal.recipe, goal.data) == (recipe.name, recipe.data.name))
    return " ".join(meant) if place == root / recipe.name / f"seed{recipe.seed}" else ""


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """KEY=VALUE for every value that is another, values as YAML takes them."""
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and value and isinstance(old, Mapping | None):
            yield from _changes(old or {}, value, f"{prefix}{key}.")
        elif value != old or key not in before:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    sys.exit(main())
