"""Groups that are frozen for a time: until some update, nothing of them changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from optimplug.recipe.text.rule_id import RuleId
from optimplug.recipe.updates import is_preparing

__all__ = ["TimedFreeze"]

_MARK = "_recipe_freeze"  # where an optimizer keeps its freeze, so that a newer one finds it


class TimedFreeze:
    """Drops the gradients of frozen groups before every step of an optimizer.

    An optimizer leaves alone what has no gradient. Unlike ``requires_grad``, this can change during
    a run without anything being rebuilt. Of several for one optimizer, the newest alone acts.

    Args:
        optimizer: whose groups name the rule that freezes them, under ``freeze``.
        until: by rule, at which update it ends.
        updates_done: tells how many there have been.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        until: Mapping[RuleId, int],
        updates_done: Callable[[], int],
    ) -> None:
        self._optimizer = optimizer
        self._until = until
        self._updates_done = updates_done
        older = getattr(optimizer, _MARK, None)
        if older is not None:
            older.close()
        self._hook: RemovableHandle | None = None
        if until:
            self._hook = optimizer.register_step_pre_hook(self._before_step)
            setattr(optimizer, _MARK, self)

    def close(self) -> None:
        """Freeze nothing any more."""
        if self._hook is not None:
            self._hook.remove()
        if getattr(self._optimizer, _MARK, None) is self:
            delattr(self._optimizer, _MARK)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Drop the gradients that are there, and those that a closure computes within the step."""
        self._drop_gradients(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return None

        def without_frozen() -> Any:
            loss = closure()
            self._drop_gradients(optimizer)
            return loss

        rest = {key: value for key, value in kwargs.items() if key != "closure"}
        return (args[0], without_frozen, *args[2:]), rest

    def _drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if is_preparing(optimizer):
            return
        done = self._updates_done()
        for group in optimizer.param_groups:
            rule = RuleId.in_group(group, "freeze")
            if rule is not None and done < self._until.get(rule, 0):
                for p in group["params"]:
                    p.grad = None
