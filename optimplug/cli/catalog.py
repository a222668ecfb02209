"""The commands on what there is: optimizers, schedulers, and what a recipe may say."""

from __future__ import annotations

from typing import Annotated

import typer

from optimplug.cli.shared import AsJson, app, as_json, bad_usage, show
from optimplug.errors import ArgumentError
from optimplug.recipe import Recipe
from optimplug.show.optimizers import OptimizerTable
from optimplug.show.schedulers import SchedulerTable

__all__ = ["optimizers", "schedulers", "schema"]

Pattern = Annotated[
    str, typer.Argument(metavar="GLOB", help="Only those of such a name, in any case.")
]


@app.command()
def optimizers(
    pattern: Pattern = "*",
    json: AsJson = False,
) -> None:
    """Show the optimizers: what each is for, its usual rate, its memory, where it runs.

    Example: optimplug optimizers

    Example: optimplug optimizers 'ada*'
    """
    _show(pattern, OptimizerTable, json)


@app.command()
def schedulers(
    pattern: Pattern = "*",
    json: AsJson = False,
) -> None:
    """Show the schedulers and presets: what each does, and what a phase of it says in a recipe.

    Example: optimplug schedulers

    Example: optimplug schedulers '*cosine*'
    """
    _show(pattern, SchedulerTable, json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, by which an editor completes and checks one.

    Example: optimplug schema > recipe.schema.json

    A recipe then begins with: # yaml-language-server: $schema=recipe.schema.json
    """
    show(as_json(Recipe.json_schema()))


def _show(pattern: str, table: type[OptimizerTable] | type[SchedulerTable], json: bool) -> None:
    with bad_usage("GLOB", ArgumentError):
        found = table.of(pattern)
    show(as_json(found.to_list()) if json else found)
