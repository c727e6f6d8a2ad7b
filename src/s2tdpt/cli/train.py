"""`train`, `compact` and `demo`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2tdpt.cli import options
from s2tdpt.cli.options import DataRoot, Device

if TYPE_CHECKING:
    from s2tdpt.training.recipe import Recipe

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML file, or the bare name of a recipe that comes with the package.",
        autocompletion=options.complete_recipes,
        show_default=False,
    ),
]


def train(
    recipe: RecipeName,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; default: runs/NAME.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be given again."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Instead of the recipe's.", show_default=False)
    ] = None,
    device: Device = None,
    data_root: DataRoot = None,
) -> None:
    """Train a model from a recipe.

    The folder of the finished run is a MODEL for the other commands. A teacher or initial weights that are not there,
    and that a recipe makes, are trained first into that recipe's folder under runs/.

    \b
    Examples:
      s2tdpt train digits
      s2tdpt train recipes/cifar10_fast.yaml --out runs/first --seed 1
      s2tdpt train cifar10_fast --set optimizer.lr=0.02 --set schedule.time_steps=1:40,4:5
      s2tdpt train runs/first/recipe.yaml --out runs/first --resume
      torchrun --nproc-per-node 2 -m s2tdpt train cifar10_fast
    """
    from s2tdpt.errors import S2tdptError, TrainingError, TrainingInterrupted
    from s2tdpt.training import engine
    from s2tdpt.training.folder import RECIPE
    from s2tdpt.training.recipe import RUNS, load_recipe, parse_overrides

    plan = load_recipe(recipe).replace(**parse_overrides(changes or []))
    if seed is not None:
        plan = plan.replace(seed=seed)
    folder = out or Path(RUNS) / plan.name
    first_rank = int(os.environ.get("RANK", 0)) == 0
    if resume and first_rank and not (folder / RECIPE).is_file():
        raise TrainingError(
            f"{folder} holds no run to go on with: leave --resume out, or name the run's folder with --out"
        )
    where = {"device": device, "data_root": data_root}
    before = _needs(plan, folder, resume)
    current = folder
    if before:
        names = ", then ".join(map(str, before))
        print(f"{plan.name} needs {names}: trained first, by their own recipes, without --set", file=sys.stderr)
    try:
        for current in before:
            engine.train(load_recipe(current.name), current, resume=(current / RECIPE).is_file(), **where)
        current = folder
        metrics = engine.train(plan, folder, resume=resume, **where)
    except (KeyboardInterrupt, TrainingInterrupted):
        again = shlex.join(["s2tdpt", "train", str(folder / "recipe.yaml"), "--out", str(folder), "--resume"])
        again = f"to go on from the last checkpoint: {again}" if current == folder else "the same command goes on"
        print(f"\ninterrupted; {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except S2tdptError as error:
        if current == folder:
            raise
        own = f"s2tdpt train {current.name}"
        raise TrainingError(f"{current}, which {plan.name} needs: {error}; its own command is {own}") from error
    if first_rank:
        print(f"top-1 accuracy {metrics['top1']:.2%} on {metrics['n']:,} images; everything is in {folder}")


def _needs(plan: Recipe, folder: Path, resume: bool) -> list[Path]:
    """The folders of the runs that `plan`, to be trained into `folder`, needs first; what is amiss is said at once."""
    from s2tdpt.errors import TrainingError
    from s2tdpt.training.folder import refuse_taken
    from s2tdpt.training.needs import departures, in_order, needed

    if int(os.environ.get("RANK", 0)) == 0:
        refuse_taken(folder, plan, resume)
        for departure in departures(plan, folder):
            print(f"warning: {departure}", file=sys.stderr)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return []  # a recipe's batch would be that of each process
    before = [need for need, _ in in_order(needed(plan, folder))]
    if folder in before:
        raise TrainingError(f"{folder} is where {plan.name} looks for what it needs: choose another folder with --out")
    return before


def compact(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an unfinished run.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the small copy.", show_default=False)],
) -> None:
    """Copy a run's last checkpoint, made small enough to carry elsewhere.

    Weights are rounded to half precision, the optimiser's moments to 8 bits: 5 or 6 bytes a weight, in files of 14 MB
    at most. `train --resume` goes on from the copy, but not to the very weights that the run itself would reach.

    \b
    Examples:
      s2tdpt compact runs/long carried/long
      s2tdpt train carried/long/recipe.yaml --out carried/long --resume
    """
    from s2tdpt.training.compact import compact_run

    size = compact_run(run, out)
    again = shlex.join(["s2tdpt", "train", str(out / "recipe.yaml"), "--out", str(out), "--resume"])
    print(f"{size / 1e6:.1f} MB in {out}, not exact; to go on from it: {again}")


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where report.html and metrics.json go.")] = Path(
        "runs/demo"
    ),
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, …")] = "cpu",
) -> None:
    """Train on real digits, beside an ANN twin, and compare.

    Takes two or three minutes on two cores and needs no download.

    \b
    Examples:
      s2tdpt demo
      s2tdpt demo --out runs/again --device cuda
    """
    from s2tdpt.demo import run

    run(out, device=device)
