"""Problems of a recipe, collected so that one error reports them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from optimplug.errors import Problem, RecipeError

__all__ = ["Problems"]


class Problems:
    """The problems found so far.

    Example:
        >>> wrong = Problems()
        >>> with wrong.caught():
        ...     raise RecipeError.at("optimizer.lr", "must be a number")
        >>> with wrong.caught("schedule[0].for"):
        ...     raise ValueError("is too long")
        >>> wrong.raise_if_any()
        Traceback (most recent call last):
        optimplug.errors.RecipeError: optimizer.lr: must be a number
        schedule[0].for: is too long
    """

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, path: str, message: str) -> None:
        """Add a problem.

        Args:
            path: of the key that it is about.
            message: what must hold instead.
        """
        self._found.append(Problem(path, message))

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add several problems."""
        self._found.extend(problems)

    @contextmanager
    def caught(self, path: str | None = None) -> Iterator[None]:
        """Add what a RecipeError in the block says, and go on after the block.

        Args:
            path: of the key that a plain ValueError in the block is about; None to let it pass.
        """
        try:
            yield
        except RecipeError as error:
            self.extend(error.problems)
        except ValueError as error:
            if path is None:  # then it is a bug, and no problem of the recipe
                raise
            self.add(path, str(error))

    def raise_if_any(self) -> None:
        """Raise a RecipeError with all problems, if there are any."""
        if self._found:
            raise RecipeError(self._found)
