"""The command line: ``optimplug plan``, ``explain``, ``check``, ``checkpoint`` and others.

Exit status: 0 if all is well, 1 for a bad recipe, 2 for bad usage.
"""

from __future__ import annotations

import importlib
import io
import json as json_format
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType
from torch import nn

from optimplug.errors import ArgumentError, MissingExtraError, OptimplugError
from optimplug.recipe import Horizon, Recipe, Resumption
from optimplug.recipe.checkpoint.file import read_file
from optimplug.recipe.checkpoint.saved import Saved
from optimplug.recipe.checkpoint.whole import horizon_in
from optimplug.show.checkpoint import CheckpointTable
from optimplug.show.optimizers import OptimizerTable

__all__ = ["app", "check", "checkpoint", "explain", "main", "optimizers", "plan", "schema"]

app = typer.Typer(
    name="optimplug",
    help="Say once who learns how fast, and see it before you train.\n\n"
    "Exit status: 0 if all is well, 1 for a bad recipe, 2 for bad usage.\n\n"
    "Example: optimplug plan recipe.yaml --model mypackage.models:build --steps 1000",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODULE:FACTORY|FOLDER",
        help="What builds the model, without arguments; or a folder (or file) with the config.json "
        "of a transformers model, which is built without its weights.",
    ),
]
OnMeta = Annotated[
    bool,
    typer.Option("--meta", help="Run the factory on the meta device, where a model has no size."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def check(recipe: RecipeFile) -> None:
    """Check a recipe as far as that needs no model.

    Example: optimplug check recipe.yaml
    """
    Recipe.load(recipe)
    _show(f"{recipe}: ok")


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
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Show what a recipe will do to a model: its groups, their settings, lr over time.

    Example: optimplug plan recipe.yaml --model mypackage.models:build --steps 1000 --plot lr.png

    Example: optimplug plan recipe.yaml --model ./my-bert --steps 1000 --html plan.html

    Example: optimplug plan recipe.yaml --model ./my-bert --steps 1000 --json | jq .groups
    """
    loaded = Recipe.load(recipe)
    if plot is not None and steps is None:
        raise typer.BadParameter("a plot needs --steps", param_hint="--plot")
    found = loaded.plan(_build_model(model, meta), Horizon(steps, steps_per_epoch))
    if plot is not None:
        with _bad_usage("--plot", ValueError, OSError):
            found.plot(plot)
    if html is not None:
        with _bad_usage("--html", OSError):
            html.write_text(found.html(), encoding="utf-8")
    _show(_json(found.to_dict()) if json else found)


@app.command()
def explain(
    recipe: RecipeFile,
    names: Annotated[
        list[str], typer.Argument(metavar="PARAMETER...", help="Full names of parameters.")
    ],
    model: Model,
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Tell why parameters have their settings: every rule in order, and what it did.

    Example: optimplug explain recipe.yaml classifier.bias --model mypackage.models:build
    """
    loaded = Recipe.load(recipe)
    built = _build_model(model, meta)
    with _bad_usage("PARAMETER", ArgumentError):
        found = [loaded.explain(built, name) for name in names]
    _show(_json([one.to_dict() for one in found]) if json else "\n\n".join(map(str, found)))


@app.command()
def checkpoint(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A file of torch.save or of Lightning, or the Trainer's folder."
        ),
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="Show too what going on under this recipe would change.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FACTORY|FOLDER", help="The model that goes on; as for plan."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates in the run that goes on.")
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Optimizer updates in an epoch of it.")
    ] = None,
    json: AsJson = False,
    meta: OnMeta = False,
) -> None:
    """Show what is in a checkpoint: its recipe, the update, groups and settings, bytes.

    Nothing in it is run. With a recipe and a model, show what resuming would change: what is taken
    over, settings, rates, the schedule. The run is as long as the checkpoint's without --steps.

    Example: optimplug checkpoint run.pt

    Example: optimplug checkpoint out/checkpoint-500 --recipe new.yaml --model mypackage:build
    """
    if (recipe is None) != (model is None):
        missing = "--model" if model is None else "--recipe"
        raise typer.BadParameter("is needed to tell what would change", param_hint=missing)
    states = read_file(path)
    found = {where: CheckpointTable(saved, where) for where, saved in states.items()}
    changes: dict[str, Resumption] = {}
    if recipe is not None and model is not None:
        loaded, built = Recipe.load(recipe), _build_model(model, meta)
        given = Horizon(steps, steps_per_epoch) if steps or steps_per_epoch else None
        changes = {
            where: _would_change(loaded, built, saved, given) for where, saved in states.items()
        }
    if json:
        _show(
            _json(
                [
                    {
                        **table.to_dict(),
                        **({"resuming": changes[where].to_dict()} if where in changes else {}),
                    }
                    for where, table in found.items()
                ]
            )
        )
        return
    for where, table in found.items():
        _show(table)
        if where in changes:
            _show(f"\n{changes[where]}")


def _would_change(
    recipe: Recipe, model: nn.Module, saved: Saved, horizon: Horizon | None
) -> Resumption:
    with recipe.start(model, horizon or horizon_in(saved) or Horizon()) as run:
        return run.would_change(saved)


@app.command()
def optimizers(
    pattern: Annotated[
        str, typer.Argument(metavar="GLOB", help="Only those of such a name, in any case.")
    ] = "*",
    json: AsJson = False,
) -> None:
    """Show the optimizers: what each is for, its usual rate, its memory, where it runs.

    Example: optimplug optimizers

    Example: optimplug optimizers 'ada*'
    """
    with _bad_usage("GLOB", ArgumentError):
        found = OptimizerTable.of(pattern)
    _show(_json(found.to_list()) if json else found)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, by which an editor completes and checks one.

    Example: optimplug schema > recipe.schema.json

    A recipe then begins with: # yaml-language-server: $schema=recipe.schema.json
    """
    _show(_json(Recipe.json_schema()))


@contextmanager
def _bad_usage(parameter: str, *errors: type[Exception]) -> Iterator[None]:
    """Report errors as the fault of a parameter of the command."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(str(error), param_hint=parameter) from None


def _json(value: Any) -> str:
    # NaN and infinity are no JSON, though Python would write them.
    return json_format.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def _show(what: RenderableType) -> None:
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


def _build_model(given: str, meta: bool) -> nn.Module:
    """Return the model of a ``package.module:factory``, or of a folder with a config."""
    module, colon, factory = given.partition(":")
    # What looks like a path is taken for one, so that the error says that there is no such folder.
    if Path(given).exists() or (not colon and os.sep in given):
        # Only now, because it needs transformers, and takes seconds to load.
        from optimplug.huggingface import model_of_config

        with _bad_usage("--model", ArgumentError):
            return model_of_config(given)
    if not module or not factory:
        message = f"must be package.module:factory, or a folder with a config.json (got {given!r})"
        raise _bad_model(message)
    try:
        model = _built(module, factory, meta)
    except Exception as error:  # the user's own code, which can fail in any way
        raise _bad_model(f"{given!r} failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise _bad_model(f"{given!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _built(module: str, factory: str, meta: bool) -> Any:
    found = getattr(importlib.import_module(module), factory)
    if isinstance(found, nn.Module):
        return found
    # Around the call alone: what the module itself makes as it is imported keeps its values.
    with torch.device("meta") if meta else nullcontext():
        return found()


def _bad_model(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--model")


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
        typer.echo(str(error), err=True)
        sys.exit(2)
    except OptimplugError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
