"""What is logged of an optimizer's groups, by which names, and what of it fits into a line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import torch

from optimplug._core.arguments import owner_of
from optimplug.errors import ArgumentError, listed, nearest

__all__ = ["LoggedGroups", "console_logs", "group_values"]

_QUANTITIES = ("lr", "momentum", "weight_decay", "lost_updates")  # each before the group's name
_FIRST_RATE = "learning_rate"  # as a Trainer logs it
_LONGEST = 199  # characters of a line in a console


class LoggedGroups:
    """Which groups are logged, by globs on their names.

    Args:
        globs: one, or several; None for all groups, an empty list for none.

    Raises:
        ArgumentError: they are no texts.

    Example:
        >>> logged = LoggedGroups(["head*", "*.layer.0*"])
        >>> "bert.encoder.layer.0/no_decay" in logged, "bert.encoder.layer.11" in logged
        (True, False)
    """

    def __init__(self, globs: str | Sequence[str] | None = None) -> None:
        given = [globs] if isinstance(globs, str) else globs
        is_list = isinstance(given, list | tuple) and all(isinstance(g, str) for g in given)
        if given is not None and not is_list:
            raise ArgumentError(
                f"log_groups must be globs on the names of groups, as text (got {globs!r})"
            )
        self.globs = None if given is None else tuple(given)

    def __contains__(self, name: str) -> bool:
        return self.globs is None or any(fnmatchcase(name, glob) for glob in self.globs)

    def of(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return what is logged of values by their keys, ``lr/<group>``; those of no group stay."""
        return {k: v for k, v in values.items() if "/" not in k or k.partition("/")[2] in self}

    def check(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Check that each glob names a group.

        Raises:
            ArgumentError: one does not.
        """
        groups = [enumerate(owner_of(optimizer).param_groups) for optimizer in optimizers]
        names = [str(group.get("name", i)) for each in groups for i, group in each]
        for glob in self.globs or ():
            if not any(fnmatchcase(name, glob) for name in names):
                close = nearest(glob.strip("*?"), names)
                # As a glob: brackets in a name mean something else there.
                hint = (
                    f"did you mean {escape(close)!r}?" if close else f"there are {listed(names, 8)}"
                )
                raise ArgumentError(f"log_groups: {glob!r} matches no group's name; {hint}")


def group_values(
    optimizer: torch.optim.Optimizer,
    momentum: bool = False,
    weight_decay: bool = False,
    of: str = "",
    logged: LoggedGroups | None = None,
) -> dict[str, float]:
    """Return the rate of every group, as ``lr/<group>``, and what else is asked for.

    Args:
        optimizer: whose groups.
        momentum: also ``momentum/<group>``: its momentum, or the first of its betas.
        weight_decay: also ``weight_decay/<group>``.
        of: what comes before the group's name, where there are several optimizers.
        logged: which groups; None for all.
    """
    chosen = LoggedGroups() if logged is None else logged
    return {
        f"{what}{of}/{name}": float(value)
        for i, group in enumerate(optimizer.param_groups)
        if (name := str(group.get("name", i))) in chosen
        for what, value in _values(group, momentum, weight_decay)
    }


def _values(
    group: dict[str, Any], momentum: bool, weight_decay: bool
) -> Iterator[tuple[str, float]]:
    yield "lr", group["lr"]
    if momentum and ("momentum" in group or "betas" in group):
        yield "momentum", group["betas"][0] if "betas" in group else group["momentum"]
    if weight_decay and "weight_decay" in group:
        yield "weight_decay", group["weight_decay"]


def console_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a console shows of logs: all of it, where the line is under 200 characters.

    Else the values of groups are left out, and of each quantity stands from where to where it goes,
    as far as there is room; with too little, the range stands in place of ``learning_rate``.

    Example:
        >>> logs = {"loss": 0.5, **{f"lr/layer.{i}": 1e-5 * (i + 1) for i in range(12)}}
        >>> console_logs(logs)
        {'loss': 0.5, 'lr of 12 groups': '1e-05 ... 0.00012'}
    """
    if _fits(logs):
        return dict(logs)
    of_groups: dict[str, list[float]] = defaultdict(list)
    line = {}
    for key, value in logs.items():
        quantity, slash, _ = key.partition("/")
        # What a user logs by such a name may be no number.
        if slash and quantity in _QUANTITIES and isinstance(value, int | float):
            of_groups[quantity].append(value)
        else:
            line[key] = value
    for quantity, values in of_groups.items():
        ends = dict.fromkeys(f"{value:.3g}" for value in (min(values), max(values)))
        span = " ... ".join(ends)
        longer = {**line, f"{quantity} of {len(values)} groups": span}
        if not _fits(longer) and quantity == "lr" and _FIRST_RATE in line:
            # It is the first group's alone, and would pass for the rate of all.
            longer = {**line, _FIRST_RATE: span}
        line = longer if _fits(longer) else line
    return line


def _fits(logs: Mapping[str, Any]) -> bool:
    # Consoles round numbers, or do not, as the version has it.
    rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in logs.items()}
    return max(len(str(dict(logs))), len(str(rounded))) <= _LONGEST
