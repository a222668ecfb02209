"""What a checkpoint and a recipe's run have otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug._core.arguments import owner_of
from optimplug._core.optim.executions.choice import CHOICES
from optimplug._core.optim.storage.arguments import STORAGE
from optimplug.recipe.checkpoint.kinds import (
    class_in_group,
    likely_class,
    means_the_same,
    saved_class,
)
from optimplug.recipe.checkpoint.names import match_names
from optimplug.recipe.checkpoint.resumption import Change
from optimplug.recipe.checkpoint.saved import Saved, SavedGroup
from optimplug.recipe.clipped import CLIPPING
from optimplug.recipe.keywords import NOT_SET, keywords_of
from optimplug.recipe.provenance import class_path

__all__ = ["Comparison", "OwnGroup", "comparable", "own_groups"]

_MARKS: Mapping[str, str] = {"schedule": "schedule by the rule", "freeze": "frozen by the rule"}


class OwnGroup(NamedTuple):
    """A group of the optimizer that resumes."""

    label: str
    names: tuple[str, ...]
    group: Mapping[str, Any]
    cls: type[torch.optim.Optimizer]
    """Of what moves it."""

    def base(self, key: str) -> Any:
        """Return a setting as it is before any schedule."""
        return self.group.get(f"initial_{key}", self.group.get(key))

    @property
    def settable(self) -> list[str]:
        """The settings that are compared: what a recipe can say of a group."""
        known = [*keywords_of(self.cls, NOT_SET), "decoupled_weight_decay", *STORAGE]
        return [
            key
            for key in dict.fromkeys(known)
            if key not in (*CHOICES, *CLIPPING) and (key in self.group or key in STORAGE)
        ]


def own_groups(optimizer: torch.optim.Optimizer) -> list[OwnGroup]:
    """Return the groups of an optimizer whose groups name their parameters."""
    owner = owner_of(optimizer)
    return [
        OwnGroup(
            str(group.get("name", i)),
            tuple(group["param_names"]),
            group,
            class_in_group(owner, group),
        )
        for i, group in enumerate(owner.param_groups)
    ]


@dataclass(frozen=True)
class Comparison:
    """A checkpoint, whose parameters have names, beside the groups that resume from it."""

    saved: Saved
    own: Sequence[OwnGroup]

    @cached_property
    def _matched(self) -> tuple[dict[str, str], str | None]:
        own = [name for group in self.own for name in group.names]
        return match_names(own, [name for group in self.saved.groups for name in group.names or ()])

    @property
    def names(self) -> Mapping[str, str]:
        """The checkpoint's name for each parameter that it knows."""
        return self._matched[0]

    @property
    def renamed(self) -> str | None:
        """What all names have now or had then, in words."""
        return self._matched[1]

    @cached_property
    def group_of(self) -> Mapping[str, int]:
        """In which saved group each of the checkpoint's parameters is."""
        groups = enumerate(self.saved.groups)
        return {name: i for i, group in groups for name in group.names or ()}

    def donors(self, own: OwnGroup) -> list[SavedGroup]:
        """Return the saved groups that a group's parameters come from, those of most first."""
        places = [self.group_of[self.names[n]] for n in own.names if n in self.names]
        found = sorted(dict.fromkeys(places), key=lambda i: -places.count(i))
        return [self.saved.groups[i] for i in found]

    @cached_property
    def unfit(self) -> Mapping[str, str]:
        """The parameters whose saved state is another optimizer's, and whose."""
        found = {}
        for own in self.own:
            for name in own.names:
                if name in self.names:
                    theirs = self.saved.groups[self.group_of[self.names[name]]]
                    if not self.same_kind(theirs, own):
                        found[name] = likely_class(self.saved, theirs)
        return found

    @cached_property
    def _kinds(self) -> dict[tuple[int, type], bool]:
        return {}

    def same_kind(self, theirs: SavedGroup, own: OwnGroup) -> bool:
        """Tell whether a saved group's moments mean to a group here what they meant there."""
        key = (id(theirs), own.cls)
        if key not in self._kinds:
            self._kinds[key] = means_the_same(self.saved, theirs, own.cls, own.group)
        return self._kinds[key]

    @property
    def new(self) -> tuple[str, ...]:
        """The parameters that the checkpoint does not know."""
        return tuple(n for group in self.own for n in group.names if n not in self.names)

    @property
    def gone(self) -> tuple[str, ...]:
        """The checkpoint's parameters that no group here has."""
        here = set(self.names.values())
        return tuple(name for name in self.group_of if name not in here)

    def optimizers(self) -> Iterator[Change]:
        """Walk the groups that another class moves now."""
        changes: dict[tuple[str, str], list[str]] = {}
        for own in self.own:
            for theirs in self.donors(own):
                there, here = saved_class(self.saved, theirs), class_path(own.cls)
                if there is None and not self.same_kind(theirs, own):
                    there = likely_class(self.saved, theirs)
                if there is not None and there != here:
                    anew = "" if self.same_kind(theirs, own) else ", whose state begins anew"
                    changes.setdefault((there, f"{here}{anew}"), []).append(own.label)
        for (there, here), labels in changes.items():
            yield Change("optimizer", there, here, tuple(dict.fromkeys(labels)))

    def settings(self) -> Iterator[Change]:
        """Walk the settings that groups have otherwise, those that changed alike together."""
        changes: dict[tuple[str, str, str], tuple[Any, Any, list[str]]] = {}
        for own in self.own:
            for theirs in self.donors(own):
                for key, there, here in self._differing(own, theirs):
                    alike = (key, repr(there), repr(here))
                    changes.setdefault(alike, (there, here, []))[2].append(own.label)
        for (key, _, _), (there, here, labels) in changes.items():
            yield Change(key, there, here, tuple(dict.fromkeys(labels)))

    def _differing(self, own: OwnGroup, theirs: SavedGroup) -> Iterator[tuple[str, Any, Any]]:
        if not self.same_kind(theirs, own):
            return  # another optimizer, which has other settings
        for key in own.settable:
            # How it is stored is in the groups only where it is not as in torch.
            if key in theirs.settings or key in STORAGE:
                there = comparable(theirs.settings.get(key, STORAGE.get(key)))
                if f"initial_{key}" in theirs.settings:
                    there = comparable(theirs.base(key))
                here = comparable(own.base(key) if key in own.group else STORAGE.get(key))
                if there != here:
                    yield key, there, here
        for key, words in _MARKS.items() if self.saved.is_ours else ():
            there, here = theirs.settings.get(key), own.group.get(key)
            if there != here:
                yield words, comparable(there), here

    def cut(self) -> Change | None:
        """Return how the groups are cut, if that is otherwise."""
        known = {name: self.group_of[theirs] for name, theirs in self.names.items()}
        here = {frozenset(n for n in own.names if n in known) for own in self.own} - {frozenset()}
        there: dict[int, set[str]] = {}
        for name, place in known.items():
            there.setdefault(place, set()).add(name)
        if here == {frozenset(names) for names in there.values()}:
            return None
        labels = [group.label(i) for i, group in enumerate(self.saved.groups)]
        own = [group.label for group in self.own]
        return Change("groups", _counted(labels), _counted(own), tuple(own))

    def same_places(self) -> bool:
        """Tell whether all groups and parameters come in the order in which they were saved."""
        ours = [[self.names.get(name) for name in own.names] for own in self.own]
        return ours == [list(group.names or ()) for group in self.saved.groups]


def comparable(value: Any, depth: int = 0) -> Any:
    """Return a setting such that equal ones are equal, whatever they were saved as."""
    if isinstance(value, Tensor):
        if value.is_meta or value.numel() > 64:
            return f"a tensor of {tuple(value.shape)}"
        return comparable(value.item() if value.numel() == 1 else value.tolist())
    if isinstance(value, list | tuple):
        if depth > 8 or len(value) > 64:  # no setting is; one that holds itself has no end
            return f"{len(value)} values"
        return tuple(comparable(item, depth + 1) for item in value)
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else repr(value)[:200]


def _counted(labels: Sequence[str]) -> str:
    return f"{len(labels)}: {', '.join(labels)}"
