"""LightningCLI with a recipe."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from optimplug.errors import OptimplugError, RecipeError
from optimplug.lightning.configure import take_over
from optimplug.lightning.package import LightningArgumentParser, LightningCLI
from optimplug.recipe import Recipe
from optimplug.recipe.checkpoint.policy import Policy, Resume
from optimplug.recipe.command_line import changed, split_changes
from optimplug.recipe.text.reader import read

__all__ = ["RecipeCLI"]

_OPTION = "--recipe"


class _RefusedError(ArgumentTypeError, ValueError):
    """A recipe cannot be used: argparse looks for the one base, jsonargparse for the other."""


class RecipeCLI(LightningCLI):
    """A LightningCLI whose optimizer and schedule are those of its ``recipe:`` section.

    The section is a recipe, or the path of one (from the folder of the file that says so). Single
    values of it can be said on the command line: ``--recipe.optimizer.lr=1e-4``,
    ``--recipe.groups[0].layer_decay=0.9``, ``--recipe.schedule=linear``. ``--print_config`` shows
    the recipe in full, and the saved config holds it so. Without a recipe, the module configures
    itself.

    In a config, YAML is read as Lightning reads it, which is not quite as a recipe's own file is
    read: ``010`` is 8 there, and a key given twice has its last value.

    ``--resume=adapt`` says what may be otherwise where a fit goes on from a checkpoint
    (``--ckpt_path``), ``--rewarm=2%`` for how long rates climb then; see
    :func:`optimplug.lightning.configure_optimizers`.

    There are no ``--optimizer`` and ``--lr_scheduler``; everything else is as in LightningCLI.

    Args:
        args: as LightningCLI's.
        kwargs: as LightningCLI's, but for ``auto_configure_optimizers``.

    Example:
        ``RecipeCLI(MyModule, MyData)``, then
        ``python train.py fit --config config.yaml --recipe.optimizer.lr=1e-4``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("auto_configure_optimizers", False):
            raise TypeError(
                "RecipeCLI has no auto_configure_optimizers: the recipe says which optimizer"
            )
        self._changes: dict[str, str] = {}
        self._read: list[tuple[dict[str, Any], str]] = []
        try:
            super().__init__(*args, **{**kwargs, "auto_configure_optimizers": False})
        except OptimplugError as error:  # of what needs the model, the run or its metrics
            raise SystemExit(str(error)) from None

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--recipe`` to Lightning's own arguments."""
        super().add_core_arguments_to_parser(parser)
        parser.add_argument(
            _OPTION,
            type=self._recipe,
            default=None,
            help="Path of a recipe, or the recipe itself; single values: "
            "--recipe.optimizer.lr=1e-4, --recipe.groups[0].lr_scale=2",
        )
        parser.add_argument(
            "--resume",
            type=Policy | None,
            default=None,
            help="What may be otherwise than in the checkpoint that the fit goes on from; "
            "default: as the recipe says.",
        )
        parser.add_argument(
            "--rewarm",
            type=int | str | None,
            default=None,
            help="Under --resume=adapt: for how long a rate that would jump climbs from what it "
            "was (2%, 1 epoch, 100 steps); default: as the recipe says.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; those of single values are put into the recipe that they give."""
        given = sys.argv[1:] if args is None else args
        rest, self._changes = given, {}
        if isinstance(given, list):
            try:
                rest, self._changes = split_changes([str(item) for item in given], _OPTION)
            except RecipeError as error:
                parser.error(str(error))
        if not self._changes:
            super().parse_arguments(parser, args)
            return
        silent = [item for item in rest if not item.startswith("--print_config")]
        changed = self._changed(parser, parser.parse_args(silent))
        self.config = parser.parse_args([*rest, f"{_OPTION}={json.dumps(changed)}"])

    def instantiate_classes(self) -> None:
        """Instantiate the classes; the recipe then configures the module."""
        super().instantiate_classes()
        recipe = self._get(self.config_init, "recipe")
        if recipe is not None:
            given = (self._get(self.config_init, key) for key in ("resume", "rewarm"))
            take_over(self.model, recipe, Resume.read(*given))

    def _recipe(self, value: str | Mapping[str, Any]) -> dict[str, Any] | None:
        """Read and check a recipe; this is the type of ``--recipe``."""
        if value in ("null", "None"):
            return None
        try:
            content, source = read(value)
            if source is not None:
                self._read.append((content, source))
            if not self._changes:  # which may make it right, or be of another
                Recipe.load(value)
        except RecipeError as error:
            raise _RefusedError(str(error)) from None
        return content

    def _changed(self, parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
        """Return the recipe of a config with the single values in it, or leave with an error."""
        content = config.get(str(config.get("subcommand")), config).get("recipe")
        source = next((name for known, name in self._read if known == content), None)
        try:
            return changed(content, self._changes, _OPTION, source)
        except RecipeError as error:
            parser.error(str(error))
