"""The settings of groups as a step has found them: to compare them takes less than to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from optimplug._core.optim.rule import Hyper, Rule

__all__ = ["Settings"]


class Settings:
    """The settings of all groups, and whether they still are the same."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.numbers = _numbers(groups)
        # Held, so that their numbers stay theirs; but not the lists, which hold parameters.
        own = [(i, key, value) for i, group in enumerate(groups) for key, value in group.items()]
        own = [each for each in own if each[1] not in ("params", "param_names")]
        self.held = [value for *_, value in own]
        self.lists = [(i, key, tuple(v)) for i, key, v in own if isinstance(v, list)]
        self.can_be_kept = all(map(_stays, self.held)) and not any(
            "train_mode" in g for g in groups
        )

    def hold(
        self,
        groups: Sequence[Hyper],
        rule_of: Callable[[Hyper], Rule],
        rules: Sequence[Rule],
    ) -> bool:
        """Tell whether the rules are the same; settings that leave them so are taken up."""
        same = self.numbers == _numbers(groups)
        if same and not (self.lists and any(tuple(groups[i][k]) != v for i, k, v in self.lists)):
            return True
        fresh = Settings(groups)
        if not fresh.can_be_kept or rules != list(map(rule_of, groups)):
            return False
        vars(self).update(vars(fresh))
        return True


def _numbers(groups: Iterable[Mapping[str, Any]]) -> list[int]:
    return list(map(id, chain.from_iterable([group.values() for group in groups])))


def _stays(value: Any) -> bool:
    """Tell whether a setting is a value, which nobody changes in place, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(_stays, value)) and not any(isinstance(v, list) for v in value)
    return value is None or isinstance(value, int | float | str)
