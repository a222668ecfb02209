"""Hyperparameters that are numbers of updates, where a recipe gives them as parts of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from optimplug import optim
from optimplug._core.optim.hyperparameters import PartOfRun
from optimplug.errors import Problem
from optimplug.recipe.text.durations import Duration, Horizon
from optimplug.recipe.text.written import within

__all__ = ["LENGTHS", "length_problems", "settle_lengths", "with_lengths"]

LENGTHS = frozenset(
    length for name in optim.__all__ for length in getattr(getattr(optim, name), "lengths", ())
)
"""The names of such hyperparameters."""


def with_lengths(cls: type[torch.optim.Optimizer], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters with what is written of a length as what its optimizer takes.

    Args:
        cls: the optimizer's class; those of other packages take numbers alone.
        given: the hyperparameters, of the optimizer or of a group.

    Raises:
        ValueError: one is no duration.

    Example:
        >>> from optimplug.optim import AdEMAMix
        >>> with_lengths(AdEMAMix, {"lr": 0.1, "t_alpha": "500 steps", "t_beta3": "60%"})
        {'lr': 0.1, 't_alpha': 500, 't_beta3': PartOfRun(text='60%')}
    """
    if not issubclass(cls, optim.Optimizer):
        return dict(given)
    return {name: _read(name, value) for name, value in given.items()}


def _read(name: str, value: Any) -> Any:
    if name not in LENGTHS or not isinstance(value, str):
        return value
    duration = Duration.parse(value)
    return int(duration.amount) if duration.unit == "steps" else PartOfRun(value)


def length_problems(path: str, given: Mapping[str, Any], horizon: Horizon) -> Iterator[Problem]:
    """Return which lengths need what a horizon lacks.

    Args:
        path: where they stand in the recipe.
        given: hyperparameters, as they are written.
        horizon: of the run.
    """
    for name in LENGTHS & given.keys():
        if isinstance(given[name], str):
            try:
                Duration.parse(given[name]).steps(horizon)
            except ValueError as error:
                yield Problem(within(path, name), str(error))


def settle_lengths(optimizer: torch.optim.Optimizer, horizon: Horizon) -> None:
    """Give an optimizer the numbers of updates that its lengths are in a run with this horizon.

    What was written stays in the group with what came of it, as ``written_t_alpha``, say, so that
    another horizon has its own number. One that somebody has set since stays.

    Args:
        optimizer: the recipe's.
        horizon: one that has what the lengths need: see :func:`length_problems`.
    """
    for settings in (optimizer.defaults, *optimizer.param_groups):
        for name in LENGTHS & settings.keys():
            value = settings[name]
            written, settled = settings.get(f"written_{name}", (None, None))
            if isinstance(value, PartOfRun):
                written = value.text
            elif written is None or value != settled:
                continue
            settings[name] = Duration.parse(written).steps(horizon)
            settings[f"written_{name}"] = (written, settings[name])
