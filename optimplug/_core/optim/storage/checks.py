"""What of ``rounding`` and ``state_dtype`` a group may ask for."""

from __future__ import annotations

from optimplug._core.arguments import require_count
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.storage.stored import STORAGE, check_ways
from optimplug.errors import ArgumentError

__all__ = ["check_storage"]


def check_storage(rule: Rule, hyper: Hyper, name: str) -> None:
    """Raise ArgumentError unless the storage that a group asks for is one that there is for it.

    Args:
        rule: of the group, without storage.
        hyper: its hyperparameters.
        name: of the optimizer.
    """
    given = [key for key in STORAGE if key in hyper]
    if given and rule.storage_refusal is not None:
        raise ArgumentError(f"{name} has no {given[0]}: {rule.storage_refusal}")
    rounding, dtype = hyper.get("rounding", "nearest"), hyper.get("state_dtype")
    check_ways(rule, rounding, dtype, name)
    for key in ("rounding_seed", "rounding_step"):
        require_count(key, hyper.get(key, 0))
    stored_apart = rounding != "nearest" or dtype is not None
    for choice, why in _APART.items():
        if stored_apart and hyper.get(choice):
            key = "rounding" if rounding != "nearest" else "state_dtype"
            raise ArgumentError(f"{key} does not support {choice}=True: {why}; leave one out")


_APART = {
    "differentiable": "no gradient flows through rounding",
    "fused": "torch's operators write weights and states as they are",
}
