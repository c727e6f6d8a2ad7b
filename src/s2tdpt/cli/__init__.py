"""The `s2tdpt` command. Everything heavy is imported inside the command that needs it, so that `--help` is quick."""

import sys


def main() -> None:
    """Run the command line; returns only through `SystemExit`."""
    try:
        from s2tdpt.cli.app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("error: the command line needs typer: pip install typer")
    app(prog_name="s2tdpt")
