"""Single values of a recipe on the Trainer's command line: ``--recipe.optimizer.lr 1e-4``."""

from __future__ import annotations

import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

from optimplug.recipe.command_line import changed, names_of_changes
from optimplug.recipe.text.reader import read

__all__ = ["ChangedRecipe", "RecipeAction"]


class ChangedRecipe(NamedTuple):
    """A recipe, and single values that were given beside it, before they are put into it."""

    recipe: Any
    changes: dict[str, str]
    option: str

    def content(self) -> dict[str, Any]:
        """Return the recipe with the values in it.

        Raises:
            RecipeError: there is no recipe, or something is wrong with it or a value.
        """
        content, source = (None, None) if self.recipe is None else read(self.recipe)
        return changed(content, self.changes, self.option, source)


class RecipeAction(Action):
    """Takes the recipe from a command line, and single values of it.

    HfArgumentParser makes its options of the fields of classes, and hands what stands in a field's
    metadata on to argparse, so that a parser that knows no recipes can be told of them. But
    argparse knows an option by its whole name alone. Those of single values are therefore looked up
    in the arguments of the program, as the parser is made; in a list of arguments that is given to
    the parser in their place they are unknown, which it says.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        self._option = option_strings[0]
        single = names_of_changes(sys.argv[1:], self._option)
        super().__init__([*option_strings, *single], dest, **kwargs)

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the recipe and single values, which may come in any order."""
        before = getattr(namespace, self.dest)
        if not isinstance(before, ChangedRecipe):
            before = ChangedRecipe(before, {}, self._option)
        recipe, changes, option = before
        if option_string in (None, self._option):
            recipe = values
        else:
            changes = {**changes, str(option_string)[len(option) :].lstrip("."): values}
        found = ChangedRecipe(recipe, changes, option) if changes else recipe
        setattr(namespace, self.dest, found)
