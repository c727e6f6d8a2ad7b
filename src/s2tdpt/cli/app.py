"""The commands together, and what happens when one of them fails."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from s2tdpt import __version__
from s2tdpt.cli import explain, measure, models, train
from s2tdpt.errors import S2tdptError

UsageError: type[Exception] = typer.BadParameter.__mro__[2]  # every mistake on the command line itself


class Commands(TyperGroup):
    """What a person can mend becomes one line on stderr and exit code 2; anything else is a bug and keeps its trace."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            try:
                code = super().main(*args, standalone_mode=False, **kwargs)
            except Exception as error:
                complaint = complain(error)
                if complaint is None:
                    raise
                print(f"error: {complaint}", file=sys.stderr)
                code = 2
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def complain(error: Exception) -> str | None:
    """One line for people, or None where the error is not theirs."""
    if isinstance(error, S2tdptError):
        text = str(error)
    elif isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "s2tdpt"
        text = f"{error.format_message()} (see {command} --help)"  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        text = f"no space left on the disk{_place(error)}: free some and run the command again"
    elif isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)) and error.strerror:
        text = f"{error.strerror}{_place(error)}: choose another place"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}{_place(error)}"
    elif isinstance(error, (MemoryError, RuntimeError)) and _out_of_memory(error):
        text = "out of memory: lower --batch-size, --limit or --time-steps (of training: --set data.batch_size=…)"
    else:
        return None
    return " ".join(text.split())


def _out_of_memory(error: Exception) -> bool:
    from s2tdpt.training.step import is_out_of_memory

    return is_out_of_memory(error)


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


app = typer.Typer(cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(train.train)
app.command()(train.compact)
app.command()(measure.evaluate)
app.command()(measure.predict)
app.command()(measure.energy)
app.command()(explain.explain)
app.command()(models.models)
app.command()(train.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"s2tdpt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Spiking vision Transformers whose attention is spike-timing-dependent plasticity.

    \b
    First steps, without any download:
      s2tdpt models                                    what there is
      s2tdpt evaluate s2tdpt_tiny.digits               how accurate the shipped weights are
      s2tdpt energy s2tdpt_tiny.digits                 what one image costs
      s2tdpt train digits                              train those weights yourself, into runs/digits
      s2tdpt demo                                      all of it, beside an ordinary Transformer

    `s2tdpt COMMAND --help` explains one command. `s2tdpt --install-completion` makes Tab complete names.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())
