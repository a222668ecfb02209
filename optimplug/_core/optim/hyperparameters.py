"""What the hyperparameters of an optimizer must be, and the errors, which begin as torch's do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from optimplug._core.arguments import as_number
from optimplug._core.optim.rule import Hyper
from optimplug.errors import ArgumentError

__all__ = [
    "PartOfRun",
    "arguments",
    "check_betas",
    "check_each",
    "check_lengths",
    "check_not_negative",
    "check_one_element",
    "check_rate",
    "length_of",
    "passed_on",
    "refuse_learnt_rate",
]


@dataclass(frozen=True)
class PartOfRun:
    """A number of updates that is known once a run's horizon is, as a recipe writes it."""

    text: str

    def __str__(self) -> str:
        return self.text


_OF_THE_WHOLE = frozenset(
    {
        *("max_grad_norm", "skip_nonfinite", "compact_state"),
        *("rounding", "rounding_seed", "state_dtype"),
    }
)
"""What constructors pass on to :class:`.Optimizer` by name, beside the defaults of groups."""


def arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor beside ``params``, from its ``locals()``."""
    return {k: v for k, v in found.items() if k not in ("self", "params", "__class__")}


def passed_on(
    found: Mapping[str, Any], *, if_asked: Collection[str] = (), **more: Any
) -> dict[str, Any]:
    """Return what a constructor passes on to :class:`.Optimizer`, from its own arguments.

    Args:
        found: its ``locals()``.
        if_asked: choices that groups do not have unless they are made, as torch's have no such key.
        more: what the groups have beside them, or in their place.

    Example:
        >>> passed_on({"self": None, "params": [], "lr": 0.1, "max_grad_norm": None}, k=0)
        {'max_grad_norm': None, 'defaults': {'lr': 0.1, 'k': 0}}
    """
    own = {k: v for k, v in arguments(found).items() if k not in if_asked or v}
    whole = {key: own.pop(key) for key in list(own) if key in _OF_THE_WHOLE}
    return {**whole, "defaults": {**own, **more}}


def check_each(*rows: tuple[bool, str, Any]) -> None:
    """Raise ArgumentError at the first that does not hold: whether it does, what must, the value.

    Example:
        >>> check_each((-1 >= 0, "d should be >= 0", -1))
        Traceback (most recent call last):
        optimplug.errors.ArgumentError: d should be >= 0 but is: -1
    """
    for holds, must, value in rows:
        if not holds:
            raise ArgumentError(f"{must} but is: {value}")


def check_rate(hyper: Hyper) -> None:
    """Raise ArgumentError unless ``lr`` is a number >= 0, or a tensor of one."""
    check_one_element(hyper)
    lr = hyper["lr"]
    if not lr >= 0.0:
        raise ArgumentError(f"Invalid learning rate: {lr}; must be >= 0")


def check_one_element(hyper: Hyper) -> None:
    """Raise ArgumentError if ``lr`` is a tensor of more than one number."""
    lr = hyper["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ArgumentError(f"Tensor lr must be 1-element (got shape {tuple(lr.shape)})")


def refuse_learnt_rate(hyper: Hyper) -> None:
    """Raise ArgumentError if a differentiable step is asked for the derivative by its rate.

    For optimizers that keep numbers which follow from it, through which no autograd flows.
    """
    lr = hyper["lr"]
    if hyper.get("differentiable") and isinstance(lr, Tensor) and lr.requires_grad:
        raise ArgumentError(
            "lr must not require grad with differentiable=True: this optimizer keeps numbers that "
            "follow from it, through which no gradient flows; pass lr.detach(), or take another "
            "optimizer, such as Adam"
        )


def check_not_negative(hyper: Hyper, **names: str) -> None:
    """Raise ArgumentError unless these are numbers >= 0; each key comes with torch's words for it.

    Example:
        >>> check_not_negative({"eps": -1.0}, eps="epsilon value")
        Traceback (most recent call last):
        optimplug.errors.ArgumentError: Invalid epsilon value: -1.0; must be >= 0
    """
    for key, words in names.items():
        if not hyper[key] >= 0.0:
            raise ArgumentError(f"Invalid {words}: {hyper[key]}; must be >= 0")


def check_betas(hyper: Hyper, count: Literal[2, 3] = 2) -> None:
    """Raise ArgumentError unless ``betas`` are ``count`` numbers in [0, 1), or tensors."""
    betas = hyper["betas"]
    if len(betas) != count:
        words = {2: "two", 3: "three"}[count]
        raise ArgumentError(f"Invalid betas: {betas}; must be {words} numbers in [0, 1)")
    if len({isinstance(beta, Tensor) for beta in betas}) == 2:
        raise ArgumentError(f"betas must be either both floats or both Tensors (got {betas})")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ArgumentError(f"Tensor betas[{i}] must be 1-element")
        if not 0.0 <= beta < 1.0:
            raise ArgumentError(f"Invalid beta parameter at index {i}: {beta}; must be in [0, 1)")
        if isinstance(beta, Tensor) and hyper.get("foreach") and not hyper.get("capturable", True):
            raise ArgumentError(
                f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True"
            )


def check_lengths(hyper: Hyper, *names: str) -> None:
    """Raise ArgumentError unless these are numbers of updates >= 0, or None."""
    for name in names:
        value, number = hyper[name], as_number(hyper[name])
        known = number is not None and number >= 0
        if not (known or value is None or isinstance(value, PartOfRun)):
            raise ArgumentError(
                f"Invalid {name}: {value!r}; must be a number of updates >= 0, or None"
            )


def length_of(hyper: Hyper, name: str) -> float | None:
    """Return a number of updates.

    Raises:
        ArgumentError: it is a part of a run of which nobody has told how long it is.
    """
    value: float | PartOfRun | None = hyper[name]
    if isinstance(value, PartOfRun):
        raise ArgumentError(
            f"{name} is {value.text!r} of a run whose length is not known; build the recipe's "
            "schedule before the first step, which tells it, or set it to a number of updates"
        )
    return value
