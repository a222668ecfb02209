"""The command that holds two recipes against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from optimplug.cli.model import OnMeta, build_model
from optimplug.cli.shared import AsJson, app, as_json, bad_usage, in_cli_words, show
from optimplug.errors import OptimplugError
from optimplug.recipe import Horizon, Recipe
from optimplug.show.difference import PlanDifference, changed_keys, keys_table, plans_table
from optimplug.show.difference.pictures import draw, page
from optimplug.show.difference.plans import Change

__all__ = ["diff"]

_DIFFERENT, _TROUBLE = 1, 2


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A recipe, a YAML file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY|FOLDER", help="The model that both are for; as for plan."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer updates in the run.")] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates in an epoch.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the rates over each other into this PNG, SVG or PDF.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write tables and curves into this HTML page.")
    ] = None,
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Show what two recipes have otherwise: key by key; for a model, group by group.

    Exit status, as of diff: 0 if they are the same, 1 if not, 2 for trouble, such as a bad recipe.
    With a model it is that of what they do to it: two ways to say one thing are the same.

    Example: optimplug diff recipe.yaml new.yaml

    Example: optimplug diff recipe.yaml new.yaml --model ./my-bert --steps 1000 --html diff.html
    """
    of_model = {"--steps": steps, "--steps-per-epoch": steps_per_epoch, "--plot": plot}
    for option, value in {**of_model, "--html": html, "--meta": meta or None}.items():
        if value is not None and model is None:
            raise typer.BadParameter("is for a model: give --model too", param_hint=option)
    for option, file in {"--plot": plot, "--html": html}.items():
        if file is not None and steps is None:
            raise typer.BadParameter("curves need --steps", param_hint=option)
    try:
        recipes = Recipe.load(first), Recipe.load(second)
        keys = changed_keys(*recipes)
        found = None if model is None else _in_plans(recipes, model, meta, steps, steps_per_epoch)
    except OptimplugError as error:  # for main it would be status 1, which says something else here
        typer.echo(in_cli_words(error), err=True)
        raise typer.Exit(_TROUBLE) from None
    names = (str(first), str(second))
    if found is not None and plot is not None:
        with bad_usage("--plot", ValueError, OSError):
            draw(found, names, plot)
    if found is not None and html is not None:
        with bad_usage("--html", OSError):
            html.write_text(page(found, keys, names), encoding="utf-8")
    if json:
        content: dict[str, Any] = {"keys": [key._asdict() for key in keys]}
        show(as_json(content if found is None else {**content, **found.to_dict()}))
    else:
        _show_tables(found, keys, names)
    if not (found.same if found is not None else not keys):
        raise typer.Exit(_DIFFERENT)


def _in_plans(
    recipes: tuple[Recipe, Recipe], model: str, meta: bool, steps: int | None, epoch: int | None
) -> PlanDifference:
    built, horizon = build_model(model, meta), Horizon(steps, epoch)
    policies, climbs = zip(*(_resuming(recipe) for recipe in recipes), strict=True)
    whole = (Change("resume", *policies), Change("rewarm", *climbs))
    first, second = (recipe.plan(built, horizon) for recipe in recipes)
    return PlanDifference(first, second, tuple(each for each in whole if each.before != each.after))


def _resuming(recipe: Recipe) -> tuple[str, str | None]:
    found = recipe.spec.resuming
    return found.policy, None if found.rewarm is None else str(found.rewarm)


def _show_tables(found: PlanDifference | None, keys: Any, names: tuple[str, str]) -> None:
    if keys:
        show(keys_table(keys, names))
    elif found is None or found.same:
        show(f"{names[0]} and {names[1]} say the same")
    if found is not None and not found.same:
        show(plans_table(found, names))
    if found is not None and keys:
        show(found.summary)
