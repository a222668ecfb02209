"""A step like the last one: where everything is as that has left it, there is little to look at.

A step of one small tensor takes less time than to put its batch together, and one in which a random
half of the parameters have gradients less than to lay that half out. So what a compiled step has
found is kept, by numbers alone, and compared at once: who the tensors are, where they lie, and that
each is of the kind, the shape and the order in memory that it was. Whatever differs is for the
longer way, which finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.executions.compiled import ReadyCompiled
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.step.members import State
from optimplug._core.optim.step.repeat_part import Part
from optimplug._core.optim.step.settings import Settings

if TYPE_CHECKING:
    from optimplug._core.optim.step.layout import Layout

__all__ = ["Repeat"]


class Repeat:
    """What was found of a step; it holds neither parameters nor states.

    Args:
        layout: what is laid out for the step.
        parts: one for each batch of all that were laid out, with gradients or without.
        settings: those of the groups.
        choices: how the step is executed.
    """

    def __init__(
        self, layout: Layout, parts: list[Part], settings: Settings, choices: object
    ) -> None:
        self.layout = layout
        self.choices = choices
        self.parts = parts
        self.settings = settings
        self.times = 0
        """How often it was of use."""
        self.present: list[bool] | None = None
        """For every parameter whether it has a gradient in the step at hand; None: all have."""

    @classmethod
    def of(
        cls,
        layout: Layout,
        groups: Sequence[dict[str, Any]],
        grads: Sequence[Tensor | None],
        state: State,
        choices: object,
    ) -> Repeat | None:
        """Keep what a compiled step has found, if it is one that can be repeated."""
        settings = Settings(groups)
        # Groups that count have rules that count, also where no parameter's own does.
        if not settings.can_be_kept or any(rule.counts_in_groups for rule in layout.rules):
            return None
        params = list(chain.from_iterable(group["params"] for group in groups))
        # Who has no gradient now would have one like itself.
        all_grads = [p if g is None else g for p, g in zip(params, grads, strict=True)]
        parts = []
        for laid_out in layout.everyone:
            batch = laid_out.batch(groups, params, all_grads, list(state.values()))
            part = None if batch is None else Part.of(laid_out, batch)
            if part is None:
                return None
            parts.append(part)
        return cls(layout, parts, settings, choices) if parts else None

    def prepare(
        self,
        groups: list[dict[str, Any]],
        grads: list[Tensor | None],
        rule_of: Callable[[Hyper], Rule],
        state: State,
    ) -> list[ReadyCompiled] | None:
        """Return this step's work, ready to be run; None where something is not as it was.

        Args:
            groups: the optimizer's param_groups.
            grads: the gradient of every parameter.
            rule_of: returns the rule of a group.
            state: the optimizer's.
        """
        params = list(chain.from_iterable([group["params"] for group in groups]))
        is_missing = NoneType in set(map(type, grads))
        present = self.present = [g is not None for g in grads] if is_missing else None
        layout = self.layout
        if (
            in_dispatch_mode()
            or not layout.has_all(groups, params, state)
            or not layout.takes(present)
            or not self.settings.hold(groups, rule_of, layout.rules)
        ):
            return None
        found, states = [], list(state.values())
        for part in self.parts:
            if layout.was_turned:
                part.cut = None  # some may have gone on without the others
            ready = part.prepare(groups, params, grads, states, present)
            if ready is None:
                return None
            found += ready
        self.times += 1
        if present is None or len(found) < 2:
            return [ready for _, ready in found]
        # In the order in which they would be laid out without the others: so sums have one order.
        return [ready for _, ready in sorted(found, key=itemgetter(0))]

    def count(self) -> None:
        """Count the update that was prepared."""
        self.layout.count(self.present)
