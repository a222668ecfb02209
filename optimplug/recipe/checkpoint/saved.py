"""What a checkpoint holds of an optimizer and its schedule, in one form whoever has saved it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from optimplug.errors import StateError
from optimplug.recipe.schedule.run_state import parts_of_state

__all__ = ["Saved", "SavedGroup", "read_state"]


@dataclass(frozen=True)
class SavedGroup:
    """A parameter group as it was saved."""

    numbers: tuple[Hashable, ...]
    """By which the state of each parameter is found."""
    names: tuple[str, ...] | None
    """The parameters' names; None where the checkpoint does not say."""
    settings: Mapping[str, Any]
    """All else that is in the group."""

    def base(self, key: str) -> Any:
        """Return a setting as it is before any schedule."""
        return self.settings.get(f"initial_{key}", self.settings.get(key))

    def label(self, i: int) -> str:
        """Return how messages call it, as the i-th of its optimizer."""
        return str(self.settings.get("name", i))


@dataclass(frozen=True)
class Saved:
    """The state of an optimizer, with that of its schedule where the checkpoint has it."""

    optimizer: Mapping[str, Any]
    """As it is there."""
    groups: tuple[SavedGroup, ...]
    state: Mapping[Hashable, Mapping[str, Any]]
    """By the numbers of the groups' parameters."""
    schedule: Mapping[str, Any] | None = None
    training: bool | None = None
    """In which mode it was saved, where it says so."""
    updates: int | None = None
    """How many there were, where somebody else than the schedule knows."""
    by_order: bool = False
    """Whether its names were found by the order of the parameters."""
    notes: tuple[str, ...] = field(default=())
    """What had to be assumed as it was read."""

    @property
    def is_ours(self) -> bool:
        """Whether its schedule is that of a recipe."""
        return self.schedule is not None and "fingerprint" in self.schedule

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it says that it comes from; empty where it does not."""
        found = (self.schedule or {}).get("provenance")
        return found if isinstance(found, Mapping) else {}

    @property
    def are_named(self) -> bool:
        """Whether it says whose state is whose."""
        return all(group.names is not None for group in self.groups)

    @property
    def numbers(self) -> dict[str, Hashable]:
        """The number of each parameter, by name."""
        return {
            name: number
            for group in self.groups
            for name, number in zip(group.names or (), group.numbers, strict=False)
        }

    @property
    def update(self) -> int | None:
        """After how many updates it was saved; None where nothing tells.

        A recipe's schedule counts updates, another one may have counted epochs. So there it is what
        a trainer says, or else what the moments have counted.
        """
        counts = [_count(kept.get("step")) for kept in self.state.values()]
        last = (self.schedule or {}).get("last_epoch")
        known = [last] if self.is_ours else [self.updates, max(filter(None, counts), default=None)]
        if not self.state:
            known.append(last)
        return next((n for n in known if type(n) is int and n >= 0), None)  # False is no count

    def named(self, names: Sequence[Sequence[str]], note: str) -> Saved:
        """Return the same with names for its parameters, which somebody else knows."""
        pairs = zip(self.groups, names, strict=True)
        groups = tuple(replace(group, names=tuple(own)) for group, own in pairs)
        return replace(self, groups=groups, by_order=True, notes=(*self.notes, note))


def read_state(state_dict: Any) -> Saved:
    """Read the state of a run, or of an optimizer alone.

    Args:
        state_dict: what :meth:`optimplug.Run.state_dict` returned, or that of an optimizer: of this
            package, of torch.optim with and without names, or of torch.distributed.checkpoint,
            where names stand in the place of numbers.

    Raises:
        StateError: it is none.
    """
    optimizer, schedule, training = parts_of_state(state_dict)
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(state, Mapping):
        given = type(state).__name__
        raise StateError(f"'state' of a state dict must be a dict by parameter (got {given})")
    if not isinstance(groups, list | tuple) or not all(isinstance(g, Mapping) for g in groups):
        raise StateError(f"'param_groups' of a state dict must be a list of dicts (got {groups!r})")
    if not groups:
        raise StateError("'param_groups' of a state dict must hold a group, but it is empty")
    for number, kept in state.items():
        if not isinstance(kept, Mapping):
            raise StateError(f"the state of parameter {number!r} must be a dict (got {kept!r})")
    found = tuple(_group(i, group) for i, group in enumerate(groups))
    _check_unique("a parameter", [n for group in found for n in group.numbers])
    _check_unique("a name", [n for group in found for n in group.names or ()])
    return Saved(optimizer, found, state, schedule, training)


def _group(i: int, group: Mapping[str, Any]) -> SavedGroup:
    numbers, names = group.get("params"), group.get("param_names")
    if not isinstance(numbers, list | tuple) or not all(isinstance(n, int | str) for n in numbers):
        raise StateError(
            f"param_groups[{i}] must have a list of numbers or names under 'params' (got "
            f"{_short(numbers)})"
        )
    if names is None and numbers and all(isinstance(n, str) for n in numbers):
        names = numbers
    if names is not None:
        of_text = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        if not of_text or len(names) != len(numbers):
            raise StateError(
                f"param_names of param_groups[{i}] must be {len(numbers)} names (got "
                f"{_short(names)})"
            )
    if not all(isinstance(key, str) for key in group):
        raise StateError(f"the keys of param_groups[{i}] must be text (got {_short([*group])})")
    settings = {key: v for key, v in group.items() if key not in ("params", "param_names")}
    return SavedGroup(tuple(numbers), None if names is None else tuple(names), settings)


def _check_unique(what: str, found: Sequence[Hashable]) -> None:
    twice = {item for item in found if found.count(item) > 1} if len({*found}) < len(found) else ()
    for item in twice:
        raise StateError(f"{what} must be in one place of the param_groups alone (got {item!r})")


def _count(value: Any) -> int | None:
    """Return what a moment has counted, if it is a count."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 2**53 else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
