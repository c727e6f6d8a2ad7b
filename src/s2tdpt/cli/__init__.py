"""The `s2tdpt` command. Everything heavy is imported inside the command that needs it, so that `--help` is quick."""

import os
import sys


def main() -> None:
    """Run the command line; returns only through `SystemExit`."""
    # Threads that wait by spinning, the default, slow a busy machine down by a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from s2tdpt.cli.app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("error: the command line needs typer: pip install typer")
    app(prog_name="s2tdpt")
