"""The command line: ``optimplug plan``, ``explain``, ``check``, ``checkpoint`` and others.

Exit status: 0 if all is well, 1 for a bad recipe, 2 for bad usage.
"""

from __future__ import annotations

import io
import os
import sys

import typer

# Each of these adds its commands to the app, in the order in which the help lists them.
from optimplug.cli import init as _init  # isort: skip
from optimplug.cli import plan as _plan  # isort: skip
from optimplug.cli import diff as _diff  # isort: skip
from optimplug.cli import checkpoint as _checkpoint  # isort: skip
from optimplug.cli import catalog as _catalog  # isort: skip
from optimplug.cli.shared import app, in_cli_words
from optimplug.errors import MissingExtraError, OptimplugError

__all__ = ["app", "main"]

_COMMANDS = (_init, _plan, _diff, _checkpoint, _catalog)


def main() -> None:
    """Run the command line."""
    # As with `python -m`: models are found in the folder where the command is run.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (a plain string is what sys.path holds)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a pipe may take ASCII alone
    try:
        app()
    except MissingExtraError as error:
        typer.echo(in_cli_words(error), err=True)
        sys.exit(2)
    except OptimplugError as error:
        typer.echo(in_cli_words(error), err=True)
        sys.exit(1)
