"""What the commands share: the app, their options, and how they print and refuse."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from optimplug import __version__

__all__ = ["app", "as_json", "bad_usage", "in_cli_words", "show"]

app = typer.Typer(
    name="optimplug",
    help="Say once who learns how fast, and see it before you train.\n\n"
    "Exit status: 0 if all is well, 1 for a bad recipe, 2 for bad usage.\n\n"
    "Example: optimplug plan recipe.yaml --model mypackage.models:build --steps 1000",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        show(f"optimplug {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    # What stands before a command's name; the help of the whole is the app's own.
    pass


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


_WORDS = {"Horizon.total_steps": "--steps", "Horizon.steps_per_epoch": "--steps-per-epoch"}


def in_cli_words(message: object) -> str:
    """Return an error's text with the options of a command for what they are called in Python.

    Example:
        >>> in_cli_words("a percentage needs to know Horizon.total_steps")
        'a percentage needs to know --steps'
    """
    text = str(message)
    for python, option in _WORDS.items():
        text = text.replace(python, option)
    return text


@contextmanager
def bad_usage(parameter: str, *errors: type[Exception]) -> Iterator[None]:
    """Report errors as the fault of a parameter of the command."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(in_cli_words(error), param_hint=parameter) from None


def as_json(value: Any) -> str:
    """Return plain values as JSON text."""
    # NaN and infinity are no JSON, though Python would write them.
    return json_format.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def show(what: RenderableType) -> None:
    """Print text, or a table: in colours in a terminal, and as plain text in a file or a pipe."""
    try:
        # In a pipe, rich would fold the table to 80 columns.
        if sys.stdout.isatty() and not isinstance(what, str):
            Console().print(what)
        else:
            sys.stdout.write(f"{what}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has left, as in `| head -1`. Python would complain when it flushes the rest
        # at its end, so that goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
