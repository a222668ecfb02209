"""The optimizers as a table: what each is for, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optimplug import optim
from optimplug._core.optim.profile import Profile, profile_of
from optimplug.errors import ArgumentError, did_you_mean
from optimplug.recipe.resolve import optimizer_names
from optimplug.show.printed import printed

__all__ = ["OptimizerTable", "rate", "state"]


# Of the facts, what a program can read.
_WRITTEN = ("purpose", "not_for", "rate", "rate_means", "lr_only_begins", "paper", "link")


_OF_GROUPS = "each group's own"


@dataclass(frozen=True)
class OptimizerTable:
    """A row for each optimizer. Print it; :meth:`to_list` gives it to a program."""

    profiles: Sequence[Profile]

    @classmethod
    def of(cls, pattern: str = "*") -> OptimizerTable:
        """Return the table of the optimizers whose names match a glob, in any case.

        Raises:
            ArgumentError: there are none.
        """
        # A recipe cannot name this one: it makes one wherever its rules name several.
        several = optim.MultiOptimizer.__name__
        names = sorted([*optimizer_names(), several], key=str.lower)
        found = [name for name in names if fnmatchcase(name.lower(), pattern.lower())]
        if not found:
            hint = did_you_mean(pattern.strip("*?"), names)
            raise ArgumentError(f"no optimizer {pattern!r}{hint}")
        return cls([profile_of(getattr(optim, name)) for name in found])

    def to_list(self) -> list[dict[str, Any]]:
        """Return it as plain values, such as JSON has."""
        return [
            {
                **profile._asdict(),
                "facts": {name: getattr(profile.facts, name) for name in _WRITTEN},
            }
            for profile in self.profiles
        ]

    def __rich__(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("optimizer", no_wrap=True)
        for column in ("for", "not for", "lr / AdamW's", "state bytes / parameter"):
            table.add_column(column)
        for column in ("executions", "storage", "sharding"):
            table.add_column(column)
        table.add_column("paper", overflow="fold")
        for profile in self.profiles:
            table.add_row(*map(Text, _row(profile)))
        return table

    def __str__(self) -> str:
        return printed(self.__rich__())


def _row(profile: Profile) -> list[str]:
    facts = profile.facts
    none = "none" if profile.state_bytes is not None else _OF_GROUPS
    return [
        profile.name,
        facts.purpose,
        facts.not_for,
        rate(profile),
        state(profile),
        ", ".join(profile.executions) or none,
        ", ".join(profile.storage) or none,
        ", ".join(profile.sharding) or none,
        facts.link,
    ]


def rate(profile: Profile) -> str:
    """Return how an optimizer's rate compares with AdamW's."""
    facts = profile.facts
    if facts.rate is None:
        return facts.rate_means
    least, most = facts.rate
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def state(profile: Profile) -> str:
    """Return how many bytes an optimizer keeps for each element of a float32 parameter."""
    if profile.state_bytes is None:
        return _OF_GROUPS
    parts = [f"{profile.state_bytes:g}"]
    vectors = profile.state_bytes_of_vectors
    if vectors is not None and vectors != profile.state_bytes:
        parts.append(f"{vectors:g} of vectors")
    parts += [f"{size:g} with {key}" for key, size in profile.state_bytes_with.items()]
    return ", ".join(parts)
