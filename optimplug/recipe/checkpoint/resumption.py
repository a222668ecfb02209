"""What resuming has changed, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import Any, NamedTuple

from optimplug.errors import listed
from optimplug.recipe.text.schema.recipe import Policy

__all__ = ["Change", "Rates", "Resumption", "Rewarmed", "as_table", "in_words"]

_MOST = 8
"""How many rows of a kind, and names in a row, are printed."""
_WIDTH = 44
"""How wide a column may be."""


class Change(NamedTuple):
    """A setting that groups have otherwise than in the checkpoint."""

    setting: str
    before: Any
    after: Any
    groups: tuple[str, ...]


class Rates(NamedTuple):
    """The rate of a group: where the checkpoint was saved, and now."""

    group: str
    before: float | None
    after: float


class Rewarmed(NamedTuple):
    """How the rate of a group climbs from what it was to what its schedule has."""

    group: str
    start: float
    """The rate where it begins, after the update from which the run goes on."""
    end: float
    """The one that the schedule has where it ends, as far as that is known by now."""
    until: int
    """The update after which it ends."""


@dataclass(frozen=True)
class Resumption:
    """What became of a checkpoint's state, and what is otherwise from here on.

    :meth:`optimplug.Run.load_state_dict` returns it. As text it is a table.

    Example:
        >>> from optimplug import Horizon, Recipe
        >>> recipe = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "linear"}
        >>> from torch import nn
        >>> model = nn.Linear(1, 1)
        >>> saved = Recipe(recipe).start(model, Horizon(total_steps=4)).state_dict()
        >>> run = Recipe(recipe).start(model, Horizon(total_steps=8))
        >>> print(run.load_state_dict(saved, resume="adapt"))
        resumed at update 0 (adapt)
        what      in the checkpoint                here
        horizon   4 updates                        8 updates
        schedule  linear(total=4, warmup=0) for 4  linear(total=8, warmup=0) for 8
    """

    policy: Policy
    """By which it was resumed."""
    update: int
    """After how many updates the schedule goes on."""
    moved: tuple[str, ...] = ()
    """The parameters whose state was taken over."""
    new: tuple[str, ...] = ()
    """Those that the checkpoint does not know, whose state begins anew."""
    dropped: Mapping[str, str] = ()  # type: ignore[assignment]
    """What of the checkpoint's state was not taken over: by parameter, why not."""
    changed: tuple[Change, ...] = ()
    """The settings that are otherwise."""
    rates: tuple[Rates, ...] = ()
    """The rate of every group, before and after."""
    rewarmed: tuple[Rewarmed, ...] = ()
    """How the rates of groups whose rate would have jumped go to it, under ``rewarm``."""
    horizon: tuple[str | None, str | None] = (None, None)
    """How long the run was to be, and is; None where that is not known."""
    schedule: tuple[Change, ...] = ()
    """The phases, freezing and groups that are otherwise."""
    notes: tuple[str, ...] = ()
    """What else there is to know."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropped", dict(self.dropped))

    @property
    def is_exact(self) -> bool:
        """Whether nothing is otherwise."""
        same = None in self.horizon or self.horizon[0] == self.horizon[1]
        others = (
            *(self.new, self.dropped, self.changed, self.schedule, self.rewarmed, self.notes),
        )
        return same and not any(others) and self.policy != "weights"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return {
            "policy": self.policy,
            "update": self.update,
            "moved": list(self.moved),
            "new": list(self.new),
            "dropped": dict(self.dropped),
            "changed": [_plain(change) for change in self.changed],
            "schedule": [_plain(change) for change in self.schedule],
            "rates": [rates._asdict() for rates in self.rates],
            "rewarmed": [each._asdict() for each in self.rewarmed],
            "horizon": {"before": self.horizon[0], "after": self.horizon[1]},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return self.describe()

    def describe(self, verb: str = "resumed") -> str:
        """Return it as a text with a table.

        Args:
            verb: what it begins with; "would resume" where this was only tried out.
        """
        head = f"{verb} at update {self.update:,} ({self.policy})"
        if self.is_exact:
            return f"{head}: nothing has changed, {_tensors(self.moved)} went on"
        rows = [*self._rows()]
        table = as_table([("what", "in the checkpoint", "here"), *rows]) if rows else ""
        return "\n".join(filter(None, [head, table, *(f"  {note}" for note in self.notes)]))

    def _rows(self) -> Iterable[tuple[str, str, str]]:
        before, after = self.horizon
        if before != after and None not in self.horizon:
            yield "horizon", str(before), str(after)
        for change in self.schedule:
            yield change.setting, in_words(change.before), in_words(change.after)
        for change in self.changed[:_MOST]:
            groups = f" of {listed(change.groups, 3)}" if change.groups else ""
            yield f"{change.setting}{groups}", in_words(change.before), in_words(change.after)
        yield from _and_more(len(self.changed), "settings")
        if self.moved and (self.new or self.dropped):
            yield f"state of {_tensors(self.moved)}", "there", "taken over"
        if self.new:
            yield f"state of {listed(self.new, _MOST)}", "none", "begins anew"
        for why in dict.fromkeys(self.dropped.values()):
            names = [name for name, reason in self.dropped.items() if reason == why]
            yield f"state of {listed(names, _MOST)}", "there", f"left out: {why}"
        other = [r for r in self.rates if r.before != r.after]
        for group, old, new in other[:_MOST]:
            yield f"lr now of {group}", "none" if old is None else f"{old:.3g}", f"{new:.3g}"
        yield from _and_more(len(other), "rates")
        alike: dict[tuple[float, float, int], list[str]] = {}
        for each in self.rewarmed:
            alike.setdefault(each[1:], []).append(each.group)
        for (start, end, until), labels in [*alike.items()][:_MOST]:
            goes = f"from {start:.3g} to {end:.3g} by update {until:,}"
            yield f"rewarm of {listed(labels, 3)}", f"{start:.3g}", goes
        yield from _and_more(len(alike), "rates that rise again")


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as lines with columns.

    Example:
        >>> print(as_table([("what", "there"), ("lr", "0.1")]))
        what  there
        lr    0.1
    """
    cells = [[wrap(cell, _WIDTH) or [""] for cell in row] for row in rows]
    widths = [max(len(line) for row in cells for line in row[i]) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for row in cells
        for line in zip_longest(*row, fillvalue="")
    )


def in_words(value: Any) -> str:
    """Return a setting as messages have it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _and_more(count: int, what: str) -> Iterable[tuple[str, str, str]]:
    if count > _MOST:
        yield f"and {count - _MOST} more {what}", "", ""


def _tensors(names: Sequence[str]) -> str:
    return f"{len(names)} parameter{'s' if len(names) != 1 else ''}"


def _plain(change: Change) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in change._asdict().items()}
