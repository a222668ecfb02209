"""The command on a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from optimplug.cli.model import OnMeta, build_model
from optimplug.cli.shared import AsJson, app, as_json, show
from optimplug.recipe import Horizon, Recipe, Resumption
from optimplug.recipe.checkpoint.file import read_file
from optimplug.recipe.checkpoint.saved import Saved
from optimplug.recipe.checkpoint.whole import horizon_in
from optimplug.show.checkpoint import CheckpointTable

__all__ = ["checkpoint"]


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
    loaded: Recipe | None = None
    if recipe is not None and model is not None:
        loaded, built = Recipe.load(recipe), build_model(model, meta)
        given = Horizon(steps, steps_per_epoch) if steps or steps_per_epoch else None
        changes = {
            where: _would_change(loaded, built, saved, given) for where, saved in states.items()
        }
    if json:
        show(
            as_json(
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
        show(table)
        if where in changes:
            show(f"\n{changes[where].describe('would resume')}")
            if loaded is not None and not changes[where].is_exact:
                show(_BY_POLICY[loaded.spec.resuming.policy])


# What is shown is always adapt: it lists whatever is otherwise.
_BY_POLICY = {
    "exact": "this recipe says resume: exact, which refuses that; "
    "give resume: adapt in the recipe, or --resume adapt to a trainer's command line",
    "adapt": "this recipe says resume: adapt, which does that",
    "weights": "this recipe says resume: weights: optimizer and schedule would begin anew instead",
}


def _would_change(
    recipe: Recipe, model: nn.Module, saved: Saved, horizon: Horizon | None
) -> Resumption:
    with recipe.start(model, horizon or horizon_in(saved) or Horizon()) as run:
        return run.would_change(saved)
