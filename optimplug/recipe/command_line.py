"""Single values of a recipe among the arguments of a program: ``--recipe.optimizer.lr 1e-4``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimplug.errors import Problem, RecipeError
from optimplug.recipe.recipe import Recipe
from optimplug.recipe.text.override import override

__all__ = ["changed", "names_of_changes", "split_changes"]


def names_of_changes(arguments: Sequence[str], option: str) -> list[str]:
    """Return the options of single values among the arguments of a program, each once.

    Example:
        >>> names_of_changes(["--recipe", "a.yaml", "--recipe.optimizer.lr=1e-4"], "--recipe")
        ['--recipe.optimizer.lr']
    """
    names = (argument.partition("=")[0] for argument in arguments)
    return list(dict.fromkeys(name for name in names if _is_change(name, option)))


def split_changes(arguments: Sequence[str], option: str) -> tuple[list[str], dict[str, str]]:
    """Split off ``--recipe.<path>=<value>``, also where a blank stands for the equals sign.

    Args:
        arguments: those of a program.
        option: the recipe's own, ``--recipe``.

    Returns:
        The other arguments, and the values by their paths; the last of several for one path.

    Raises:
        RecipeError: one has no value.

    Example:
        >>> split_changes(["--seed", "1", "--recipe.optimizer.lr", "1e-4"], "--recipe")
        (['--seed', '1'], {'optimizer.lr': '1e-4'})
    """
    rest: list[str] = []
    changes: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if not _is_change(name, option):
            rest.append(argument)
            continue
        given = value if equals else next(left, "--")
        if given.startswith("--"):
            raise RecipeError.at("", f"{name} needs a value: {name}=...")
        changes[name[len(option) :].lstrip(".")] = given
    return rest, changes


def changed(
    content: Mapping[str, Any] | None,
    changes: Mapping[str, str],
    option: str,
    source: str | None = None,
) -> dict[str, Any]:
    """Return a recipe's content with single values changed, and checked.

    Args:
        content: the recipe, as it is written; None where there is none.
        changes: the values by their paths, as :func:`split_changes` finds them.
        option: the recipe's own, ``--recipe``.
        source: the file that the content came from.

    Raises:
        RecipeError: there is no recipe, a value cannot be put into it, or something is wrong with
            it then. What is wrong with a value that was given names its option.
    """
    if content is None:
        first = next(iter(changes))
        message = f"{option}.{first} changes a recipe, but there is none; give {option}"
        raise RecipeError.at("", message)
    try:
        found = override(content, changes)
        Recipe.load(found)
    except RecipeError as error:
        told = [_by_option(problem, changes, option, source, content) for problem in error.problems]
        raise RecipeError(told) from None
    return found


def _by_option(
    problem: Problem,
    changes: Iterable[str],
    option: str,
    source: str | None,
    content: Mapping[str, Any],
) -> Problem:
    """Return a problem as one of the option that said it; else as one of the file."""
    path, message = problem
    at = _parts(path)
    for change in changes:
        said = _parts(change)
        # It is with the value, or with a key above it that is there for its sake alone.
        below, above = at[: len(said)] == said, said[: len(at)] == at
        if said and (below or (above and not _holds(content, at))):
            of_part = "" if at == said else f"{path}: "
            return Problem(f"{option}.{change}", f"{of_part}{message}")
    return Problem(f"{source}: {path}" if source else path, message)


def _holds(content: Any, parts: Sequence[str]) -> bool:
    """Tell whether there are such keys in a recipe; of a list, every item is taken to be there."""
    for part in parts:
        if not isinstance(content, Mapping):
            break
        if part not in content:
            return False
        content = content[part]
    return True


def _is_change(name: str, option: str) -> bool:
    return name.startswith((f"{option}.", f"{option}["))


def _parts(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", path)
