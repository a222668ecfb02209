"""What schedulers read and write in a parameter group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optimplug.errors import ArgumentError

__all__ = [
    "check_has_rate",
    "has_momentum",
    "holds",
    "kept_on_error",
    "momentum_of",
    "own_rate",
    "reset",
    "set_momentum",
    "set_rate",
    "unshare",
]

Group = dict[str, Any]


def own_rate(group: Group) -> float:
    """Return the group's own rate, ``initial_lr``; it is filled in from ``lr`` if missing."""
    lr = group["lr"]
    check_has_rate(group)
    own = group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else float(lr))
    return float(own)


def check_has_rate(group: Group) -> None:
    """Raise ArgumentError where an optimizer finds the rate of a group by itself."""
    if group["lr"] is None:
        raise ArgumentError(
            "a scheduler moves the lr of every group, but that of one is None: its optimizer finds "
            "the rate by itself, as an Adafactor with relative_step=True does; give it an lr "
            "instead (with relative_step=False), or leave the scheduler out"
        )


def set_rate(group: Group, lr: float) -> None:
    """Write a group's rate where it stands."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # in place: a compiled step holds this tensor
    else:
        group["lr"] = lr


def unshare(optimizer: Optimizer) -> None:
    """Give every group whose rate is the tensor of another a tensor of its own, and the defaults.

    torch lends the one in the defaults to every group without a rate: what is written in it would
    be in all of them, and in those to come.
    """
    seen: set[int] = set()
    # A wrapper that is an optimizer by type alone may have no defaults.
    for group in (*optimizer.param_groups, getattr(optimizer, "defaults", {})):
        lr = group.get("lr")
        if isinstance(lr, Tensor) and id(lr) in seen:
            group["lr"] = lr.clone()
        seen.add(id(lr))


@contextmanager
def kept_on_error(groups: list[Group]) -> Iterator[None]:
    """Give the groups what they had before, if what is done within raises."""
    for group in groups:
        check_has_rate(group)
    kept = [dict(group) for group in groups]
    rates = [float(group["lr"]) for group in groups]
    try:
        yield
    except BaseException:
        for group, items, lr in zip(groups, kept, rates, strict=True):
            group.clear()
            group.update(items)
            if isinstance(group["lr"], Tensor):
                set_rate(group, lr)
        raise


def holds(held: Any, lr: float) -> bool:
    """Tell whether a rate in a group is this one, as far as a tensor's precision can."""
    return bool(held == (held.new_tensor(lr) if isinstance(held, Tensor) else lr))


def has_momentum(group: Group) -> bool:
    """Tell whether a group has what is cycled as momentum: of several optimizers, not all have."""
    return "betas" in group or "momentum" in group


def momentum_of(group: Group) -> float:
    """Return what is cycled as momentum: the first of ``betas``, or ``momentum``."""
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def set_momentum(group: Group, momentum: float) -> None:
    """Write what is cycled as momentum; the group's own is kept as ``initial_momentum``."""
    if "initial_momentum" not in group:
        group["initial_momentum"] = momentum_of(group)
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    else:
        group["momentum"] = momentum


def reset(group: Group) -> None:
    """Give the group its own rate and momentum back."""
    set_rate(group, own_rate(group))
    if "initial_momentum" in group:
        set_momentum(group, group["initial_momentum"])
