"""Every error that optimplug raises on purpose.

::

    OptimplugError
    ├── ArgumentError (ValueError)      an optimizer or scheduler argument breaks its rule
    ├── GradientError (RuntimeError)    a gradient is of a kind that the optimizer cannot use
    ├── ModeError (RuntimeError)        an optimizer is stepped in the mode that is for validation
    ├── StateError (ValueError)         a state dict does not fit what it is loaded into
    ├── RecipeError (ValueError)        a recipe says what cannot be done; a line for each problem
    ├── PackageError (TypeError)        a module of one of Lightning's two packages meets the other
    └── MissingExtraError (ImportError) an optional dependency is needed; names the pip command

They also derive from the built-in error that torch raises in the same place, so code written for
``torch.optim`` catches them unchanged.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = [
    "ArgumentError",
    "GradientError",
    "MissingExtraError",
    "ModeError",
    "OptimplugError",
    "PackageError",
    "Problem",
    "RecipeError",
    "StateError",
    "did_you_mean",
    "listed",
    "nearest",
]


# Everything at which str.splitlines ends a line.
_LINE_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


class OptimplugError(Exception):
    """Base of every error raised on purpose by optimplug."""


class ArgumentError(OptimplugError, ValueError):
    """An optimizer or scheduler argument breaks its rule."""


class GradientError(OptimplugError, RuntimeError):
    """A gradient is of a kind that the optimizer cannot use."""


class ModeError(OptimplugError, RuntimeError):
    """An optimizer is stepped while the weights that it validates with are in place."""


class StateError(OptimplugError, ValueError):
    """A state dict does not fit the optimizer or scheduler that it is loaded into."""


class PackageError(OptimplugError, TypeError):
    """A module, trainer or callback is of one of Lightning's two packages, others of the other."""


class MissingExtraError(OptimplugError, ImportError):
    """An optional dependency is needed for this call.

    Args:
        what: the call that needs it, for example ``"Plan.plot"``.
        extra: the extra of this package that brings it, for example ``"plot"``.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an extra: pip install "optimplug[{extra}]"')


class Problem(NamedTuple):
    """One thing wrong with a recipe: the key's path, and what must hold instead."""

    path: str
    message: str

    def __str__(self) -> str:
        line = f"{self.path}: {self.message}" if self.path else self.message
        return _LINE_BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class RecipeError(OptimplugError, ValueError):
    """A recipe cannot be carried out.

    Args:
        problems: everything found wrong, in the recipe's order.
        source: the file that the recipe came from, put before each line.

    Example:
        >>> print(RecipeError([Problem("optimizer.lrr", "unknown key; did you mean 'lr'?")]))
        optimizer.lrr: unknown key; did you mean 'lr'?
    """

    def __init__(self, problems: Iterable[Problem], source: str | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        prefix = f"{source}: " if source else ""
        super().__init__("\n".join(f"{prefix}{problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[tuple[Problem, ...], str | None]]:
        return type(self), (self.problems, self.source)

    @classmethod
    def at(cls, path: str, message: str) -> RecipeError:
        """Build an error with a single problem."""
        return cls([Problem(path, message)])


def nearest(word: object, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is spelt most like ``word``, or None if nothing is close.

    Example:
        >>> nearest("weigth_decay", ["lr", "weight_decay"])
        'weight_decay'
    """
    pool = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(word).lower(), pool, n=1, cutoff=cutoff)
    return pool[found[0]] if found else None


# What other projects call these.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "clip": "max_grad_norm",
    "gradient_clip_val": "max_grad_norm",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "metric": "monitor",
}


def listed(names: Sequence[str], most: int = 30) -> str:
    """Return names in a row, the first ones of many.

    Example:
        >>> listed(["head", "body", "tail"], most=2)
        'head, body, and 1 more'
    """
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?", or what there is if nothing is close.

    Example:
        >>> did_you_mean("T_mx", ["T_max", "eta_min"])
        "; did you mean 'T_max'?"
        >>> did_you_mean("zzz", ["T_max", "eta_min"])
        '; valid are: T_max, eta_min'
        >>> did_you_mean("learning_rate", ["lr", "betas"])
        "; did you mean 'lr'?"
    """
    choices = list(choices)
    usual = _ALSO_CALLED.get(str(word))
    close = usual if usual in choices else nearest(word, choices)
    return f"; did you mean {close!r}?" if close else f"; valid are: {', '.join(choices)}"
