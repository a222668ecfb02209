"""The command line: ``optimplug plan`` and ``optimplug check``.

Exit status: 0 if all is well, 1 for a bad recipe, 2 for bad usage.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import nn

from optimplug.errors import MissingExtraError, OptimplugError
from optimplug.recipe import Horizon, Recipe

__all__ = ["app", "main"]

app = typer.Typer(
    name="optimplug",
    help="Say once who learns how fast, and see it before you train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]


@app.command()
def check(recipe: RecipeFile) -> None:
    """Check a recipe as far as that needs no model.

    Example: optimplug check recipe.yaml
    """
    Recipe.load(recipe)
    typer.echo(f"{recipe}: ok")


@app.command()
def plan(
    recipe: RecipeFile,
    model: Annotated[
        str,
        typer.Option(metavar="MODULE:FACTORY", help="What builds the model, without arguments."),
    ],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer updates in the run.")] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates in an epoch.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw lr over time into this PNG or SVG file.")
    ] = None,
) -> None:
    """Show what a recipe will do to a model: its groups, their settings, lr over time.

    Example: optimplug plan recipe.yaml --model mypackage.models:build --steps 1000 --plot lr.png
    """
    loaded = Recipe.load(recipe)
    if plot is not None and steps is None:
        raise typer.BadParameter("a plot needs --steps", param_hint="--plot")
    found = loaded.plan(_build_model(model), Horizon(steps, steps_per_epoch))
    # In a pipe there is no terminal to ask for its width.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(found)
    if plot is not None:
        found.plot(plot)


def _build_model(path: str) -> nn.Module:
    """Import ``package.module:factory``, also from the current folder, and call it."""
    module_name, _, factory_name = path.partition(":")
    if not module_name or not factory_name:
        raise typer.BadParameter(
            f"must be package.module:factory (got {path!r})", param_hint="--model"
        )
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (a plain string is what sys.path holds)
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"cannot import {path!r}: {error}", param_hint="--model") from None
    model = factory if isinstance(factory, nn.Module) else factory()
    if not isinstance(model, nn.Module):
        raise typer.BadParameter(
            f"{path!r} gave a {type(model).__name__}, not a torch.nn.Module", param_hint="--model"
        )
    return model


def main() -> None:
    """Run the command line."""
    try:
        app()
    except MissingExtraError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except OptimplugError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
