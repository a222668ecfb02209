"""Whether parameters have a shape that their optimizer can work on with what rules set for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimplug import optim
from optimplug.errors import Problem, listed
from optimplug.recipe.parameters.votes import ParameterVotes
from optimplug.recipe.resolve import Choice
from optimplug.recipe.text.written import within

__all__ = ["ShapeProblems"]


class ShapeProblems:
    """Collects what is refused of parameters, and where in the recipe the setting stands."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def check(self, parameter: ParameterVotes, choice: Choice, settings: Mapping[str, Any]) -> None:
        """Note it if an optimizer made for some shapes refuses a parameter with its settings."""
        cls = choice.optimizer_class
        if choice.made_for is None or not issubclass(cls, optim.Optimizer):
            return
        hyper = {**choice.hyperparameters, **settings}

        def refusal(**instead: Any) -> str | None:
            return cls.rule({**hyper, **instead}).refusal(parameter.parameter)

        reason = refusal()
        if reason is not None:
            by = [key for key in hyper if key in choice.known and self._helps(key, choice, refusal)]
            path = _written_at(by[0], parameter, choice) if by else choice.path
            self._names.setdefault((path, reason), []).append(parameter.names[0])

    def __iter__(self) -> Iterator[Problem]:
        for (path, reason), names in self._names.items():
            yield Problem(path, f"{reason}; this is of {listed(names)}")

    @staticmethod
    def _helps(key: str, choice: Choice, refusal: Any) -> bool:
        """Tell whether there would be no refusal if a setting were the default."""
        return refusal(**{key: choice.known[key].default}) is None


def _written_at(key: str, parameter: ParameterVotes, choice: Choice) -> str:
    votes = parameter.votes.get(key)
    return within(f"groups[{votes[-1].rule}]" if votes else choice.path, key)
