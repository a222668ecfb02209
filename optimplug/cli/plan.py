"""The commands on a recipe: check, plan, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimplug.cli.model import Model, OnMeta, build_model
from optimplug.cli.shared import AsJson, RecipeFile, app, as_json, bad_usage, show
from optimplug.errors import ArgumentError
from optimplug.recipe import Horizon, Recipe

__all__ = ["check", "explain", "plan"]


@app.command()
def check(recipe: RecipeFile) -> None:
    """Check a recipe as far as that needs no model.

    Example: optimplug check recipe.yaml
    """
    Recipe.load(recipe)
    show(f"{recipe}: ok")


@app.command()
def plan(
    recipe: RecipeFile,
    model: Model,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer updates in the run.")] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates in an epoch.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw lr over time into this PNG, SVG or PDF file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write table and curves into this HTML page.")
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Give every group a row, where layers that differ in rates alone share one.",
        ),
    ] = False,
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Show what a recipe will do to a model: its groups, their settings, lr over time.

    Example: optimplug plan recipe.yaml --model mypackage.models:build --steps 1000 --plot lr.png

    Example: optimplug plan recipe.yaml --model ./my-bert --steps 1000 --html plan.html

    Example: optimplug plan recipe.yaml --model ./my-bert --steps 1000 --all

    Example: optimplug plan recipe.yaml --model ./my-bert --steps 1000 --json | jq .groups
    """
    loaded = Recipe.load(recipe)
    if plot is not None and steps is None:
        raise typer.BadParameter("a plot needs --steps", param_hint="--plot")
    found = loaded.plan(build_model(model, meta), Horizon(steps, steps_per_epoch))
    if plot is not None:
        with bad_usage("--plot", ValueError, OSError):
            found.plot(plot)
    if html is not None:
        with bad_usage("--html", OSError):
            html.write_text(found.html(), encoding="utf-8")
    show(as_json(found.to_dict()) if json else found.table(unfold=every))


@app.command()
def explain(
    recipe: RecipeFile,
    names: Annotated[
        list[str],
        typer.Argument(metavar="PARAMETER...", help="Full names of parameters, or globs."),
    ],
    model: Model,
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Tell why parameters have their settings: every rule in order, and what it did.

    Example: optimplug explain recipe.yaml classifier.bias --model mypackage.models:build

    Example: optimplug explain recipe.yaml '*.LayerNorm.*' --model ./my-bert
    """
    loaded = Recipe.load(recipe)
    built = build_model(model, meta)
    with bad_usage("PARAMETER", ArgumentError):
        found = loaded.explain_all(built, names)
    show(as_json([one.to_dict() for one in found]) if json else "\n\n".join(map(str, found)))
