"""Optimizer: groups and state; gathers a step's work and hands it to an execution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optimplug._core.optim.batch import gather
from optimplug._core.optim.execution import Execution, foreach, single
from optimplug._core.optim.gradients import batches_norm, clip_coefficient
from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError, nearest

__all__ = ["Optimizer"]

# How a step is executed is a choice of the running process, so it is not taken from a checkpoint.
_EXECUTION_KEYS = ("foreach", "fused", "capturable", "differentiable")


class Optimizer(torch.optim.Optimizer, ABC):
    """Base class of the optimizers: a rule, run over all groups at once.

    A subclass gives :meth:`rule` and :meth:`check`. State dicts have torch's keys and shapes, so
    checkpoints of ``torch.optim`` load here and those written here load there.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either under ``"params"`` with the
            hyperparameters of that group.
        defaults: values for the hyperparameters that a group does not give.
        max_grad_norm: clip the global norm of all gradients to this inside the step, as
            :func:`torch.nn.utils.clip_grad_norm_` before it would, except that the gradients
            themselves are left as they are. None: no clipping.

    Attributes:
        grad_norm: the global gradient norm before clipping at the last step, a zero-dimensional
            tensor; None before the first step and where ``max_grad_norm`` is None.
    """

    def __init__(
        self, params: Any, defaults: dict[str, Any], *, max_grad_norm: float | None = None
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ArgumentError(
                f"Invalid max_grad_norm: {max_grad_norm}; must be > 0, or None for no clipping"
            )
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self.check(defaults)
        super().__init__(params, defaults)

    @staticmethod
    @abstractmethod
    def rule(hyper: Hyper) -> Rule:
        """Return the update rule that a group's hyperparameters ask for."""

    @staticmethod
    @abstractmethod
    def check(hyper: Hyper) -> None:
        """Raise ArgumentError if a hyperparameter breaks its rule."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; called once, before the update.

        Returns:
            What the closure returned, or None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = gather(
            self.param_groups, [self.rule(group) for group in self.param_groups], self.state
        )
        scale = None
        if self.max_grad_norm is not None:
            self.grad_norm = batches_norm(batches)
            scale = clip_coefficient(self.grad_norm, self.max_grad_norm)
        for batch in batches:
            self._execution()(batch, scale)
        return loss

    def _execution(self) -> Execution:
        return single if self.defaults["foreach"] is False else foreach

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyperparameters.

        Keys that are not hyperparameters (``name``, say) are the user's own and are kept.

        Raises:
            ArgumentError: a value breaks its rule, or a key nearly spells a hyperparameter.
                The optimizer and the dict are as they were.
        """
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            where = f"param_groups[{len(self.param_groups)}]"
            if "name" in param_group:
                where += f" ({param_group['name']!r})"
            self._check_group(param_group, where)
        super().add_param_group(param_group)

    def _check_group(self, group: dict[str, Any], where: str) -> None:
        for key in group.keys() - self.defaults.keys() - {"params"}:
            meant = nearest(key, self.defaults, cutoff=0.85)
            if meant is not None:
                raise ArgumentError(f"{where}: unknown key {key!r}; did you mean {meant!r}?")
        try:
            self.check({**self.defaults, **group})
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "max_grad_norm": self.max_grad_norm, "grad_norm": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key in _EXECUTION_KEYS:
                group.pop(key, None)
            # A checkpoint of an older version lacks the hyperparameters that came since.
            for key, value in self.defaults.items():
                group.setdefault(key, value)
