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

__all__ = ["app", "check", "main", "plan"]

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
    if sys.stdout.isatty():
        Console().print(found)
    else:
        typer.echo(str(found))
    if plot is not None:
        try:
            found.plot(plot)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--plot") from None


def _build_model(path: str) -> nn.Module:
    """Import ``package.module:factory`` and call it."""
    module_name, _, factory_name = path.partition(":")
    if not module_name or not factory_name:
        raise typer.BadParameter(
            f"must be package.module:factory (got {path!r})", param_hint="--model"
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
        model = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # the user's own code, which can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise typer.BadParameter(f"{path!r} failed: {reason}", param_hint="--model") from None
    if not isinstance(model, nn.Module):
        raise typer.BadParameter(
            f"{path!r} gave a {type(model).__name__}, not a torch.nn.Module", param_hint="--model"
        )
    return model


def main() -> None:
    """Run the command line."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (a plain string is what sys.path holds)
    try:
        app()
    except MissingExtraError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except OptimplugError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
