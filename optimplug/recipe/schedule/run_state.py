"""The state of an optimizer and its schedule: its parts, and loading it whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from optimplug.errors import StateError, listed

__all__ = ["kept_on_error", "parts_of_state"]


def parts_of_state(
    state_dict: Mapping[str, Any],
) -> tuple[dict[str, Any], Mapping[str, Any] | None, bool | None]:
    """Return the state of the optimizer; that of the schedule and the mode, where it has them."""
    given = type(state_dict).__name__
    if isinstance(state_dict, Mapping):
        if {"optimizer", "scheduler"} <= state_dict.keys():
            for key in ("optimizer", "scheduler"):
                if not isinstance(state_dict[key], Mapping):
                    given = repr(state_dict[key])
                    raise StateError(f"{key} in the state of a run must be a dict (got {given})")
            training = state_dict.get("training", True)
            if not isinstance(training, bool):
                raise StateError(f"training must be true or false (got {training!r})")
            return state_dict["optimizer"], state_dict["scheduler"], training
        if {"state", "param_groups"} <= state_dict.keys():
            return dict(state_dict), None, None
        given = f"the keys {listed([repr(str(key)) for key in state_dict], 8) or 'none'}"
    raise StateError(
        "a state must be that of a run, with the keys 'optimizer' and 'scheduler', or of an "
        f"optimizer, with 'state' and 'param_groups' (got {given})"
    )


@contextmanager
def kept_on_error(stepped: torch.optim.Optimizer, owner: torch.optim.Optimizer) -> Iterator[None]:
    """Give an optimizer, of any class, back what it had if a state cannot be loaded."""
    # Loading puts new objects in place of these two, so these stay what they were. A wrapper may
    # hold them as well.
    before: list[tuple[torch.optim.Optimizer, dict[str, Any]]] = [
        (
            holder,
            {key: vars(holder)[key] for key in ("state", "param_groups") if key in vars(holder)},
        )
        for holder in (stepped, owner)
    ]
    try:
        yield
    except Exception as error:
        for holder, held in before:
            vars(holder).update(held)
        if isinstance(error, StateError):
            raise
        raise StateError(
            f"the state does not fit {type(owner).__name__}: {type(error).__name__}: {error}"
        ) from error
