"""Which rule of a recipe is meant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from optimplug.errors import ArgumentError

__all__ = ["RuleId"]


@dataclass(frozen=True)
class RuleId:
    """A rule of a recipe, by its place under ``groups``.

    An optimizer's groups, and so its checkpoints, hold primitives alone: there it is a path, which
    :meth:`in_group` reads.

    Example:
        >>> rule = RuleId(2)
        >>> rule.path
        'groups[2]'
        >>> RuleId.in_group({"lr": 0.1, "freeze": rule.path}, "freeze") == rule
        True
    """

    index: int

    @property
    def path(self) -> str:
        """Where the rule stands in the recipe."""
        return f"groups[{self.index}]"

    @classmethod
    def in_group(cls, group: Mapping[str, Any], key: str) -> RuleId | None:
        """Return the rule that an optimizer's group names under a key, or None.

        Raises:
            ArgumentError: what stands there is no path of a rule.
        """
        path = group.get(key)
        return None if path is None else _parsed(str(path))

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return repr(self.path)  # as what a recipe says is written in messages


@cache  # schedules ask at every step, for every group
def _parsed(path: str) -> RuleId:
    found = re.fullmatch(r"groups\[(\d+)\]", path)
    if found is None:
        raise ArgumentError(
            "schedule and freeze of a parameter group must name a rule of the recipe, such as "
            f"'groups[0]' (got {path!r}); give what is yours another key"
        )
    return RuleId(int(found[1]))
