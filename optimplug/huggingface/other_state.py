"""The state of an optimizer that was not built for this run, taken over by parameter name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug import optim
from optimplug._core.arguments import owner_of
from optimplug.errors import StateError
from optimplug.recipe.clipped import class_of

__all__ = ["TakenOver", "take_over"]

# These keep the same state, and read it alike.
_ADAMS = (torch.optim.AdamW, torch.optim.Adam, optim.AdamW, optim.Adam)


class TakenOver(NamedTuple):
    """What became of a state."""

    by_a_recipe: bool
    """Whether the saved groups name their parameters, as those of a recipe do."""
    left: int
    """How many parameters have a saved state, but are not in the optimizer."""


def take_over(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, groups: Sequence[Sequence[str]]
) -> TakenOver:
    """Load the saved state of every parameter of an optimizer; its settings stay as they are.

    Args:
        saved: the state dict of the other optimizer.
        optimizer: a recipe's, whose groups name their parameters.
        groups: the names of the parameters in each saved group, where the groups do not say.

    Raises:
        StateError: the state cannot be matched with the parameters, or is of another kind of
            optimizer. Nothing has changed then.
    """
    theirs = saved["param_groups"]
    by_name = _by_name(saved, groups)
    own = optimizer.state_dict()
    names = [name for group in own["param_groups"] for name in group["param_names"]]
    _check(by_name, optimizer, names, theirs)
    state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
    optimizer.load_state_dict({**own, "state": state})
    return TakenOver(_are_named(theirs), len(by_name.keys() - set(names)))


def _are_named(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a recipe has made the groups, and only the schedule was the Trainer's."""
    return all("param_names" in group for group in groups)


def _are_adams(groups: Sequence[Mapping[str, Any]]) -> bool:
    return all("betas" in group and "amsgrad" in group for group in groups)


def _by_name(
    saved: Mapping[str, Any], groups: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return the saved state of every parameter that has one."""
    theirs, state = saved["param_groups"], saved["state"]
    if _are_named(theirs):
        groups = [group["param_names"] for group in theirs]
    elif not _are_adams(theirs):
        raise StateError(
            "the checkpoint is of a run without a recipe, whose optimizer was not AdamW: its state "
            "cannot be taken over"
        )
    _check_sizes(theirs, groups)
    numbers = {
        name: number
        for group, names in zip(theirs, groups, strict=True)
        for number, name in zip(group["params"], names, strict=True)
    }
    return {name: state[number] for name, number in numbers.items() if state.get(number)}


def _check_sizes(theirs: Sequence[Mapping[str, Any]], groups: Sequence[Sequence[str]]) -> None:
    """Refuse groups whose parameters are not as many as their names."""
    sizes, expected = [len(group["params"]) for group in theirs], list(map(len, groups))
    if sizes != expected:
        raise StateError(
            "the checkpoint is of a run without a recipe, and its optimizer's state cannot be "
            f"matched: its groups have {sizes} parameters, but those of the Trainer's own "
            f"optimizer would have {expected}"
        )


def _check(
    by_name: Mapping[str, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    theirs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse a state that the optimizer cannot use."""
    owner = owner_of(optimizer)
    if _are_named(theirs) and not (_are_adams(theirs) and class_of(owner) in _ADAMS):
        _check_alike(by_name, owner, theirs)
        return
    if class_of(owner) not in _ADAMS:
        raise StateError(
            "the checkpoint is of a run with AdamW, whose state cannot be taken over by "
            f"{type(owner).__name__}; a recipe that goes on from it needs AdamW or Adam"
        )
    _check_shapes(by_name, optimizer, names)
    if not isinstance(owner, optim.Optimizer):
        _check_amsgrad(by_name, optimizer)


def _check_shapes(
    by_name: Mapping[str, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
) -> None:
    """Refuse moments of another shape than their parameter: the names are of others then."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for name, p in zip(names, parameters, strict=True):
        for key, value in by_name.get(name, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.shape != p.shape:
                raise StateError(
                    "the checkpoint is of a run without a recipe, and its optimizer's state cannot "
                    f"be matched: {key} of {name} has the shape {tuple(value.shape)}, the "
                    f"parameter {tuple(p.shape)}"
                )


def _check_alike(
    by_name: Mapping[str, Mapping[str, Any]],
    owner: torch.optim.Optimizer,
    theirs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse the state of another kind of optimizer; whether it is whole is for this one to say."""
    if isinstance(owner, optim.Optimizer):
        rules = [owner.stored_rule({**owner.defaults, **group}) for group in owner.param_groups]
        names = ((*(spec.name for spec in rule.saved), *rule.variant_state) for rule in rules)
        kept = {"step"}.union(*names)
        alike = all(state.keys() <= kept for state in by_name.values())
    else:  # what others keep is known from their hyperparameters alone
        own = owner.defaults.keys() - {"differentiable"}  # torch adds it as a state is loaded
        known = owner.defaults.keys() | {key for group in owner.param_groups for key in group}
        alike = all(own <= group.keys() <= known for group in theirs)
    if not alike:
        raise StateError(
            "the checkpoint is of a run whose schedule was the Trainer's own, and its optimizer's "
            f"state cannot be taken over by {type(owner).__name__}: a recipe that goes on from it "
            "needs the same optimizer"
        )


def _check_amsgrad(
    by_name: Mapping[str, Mapping[str, Any]], optimizer: torch.optim.Optimizer
) -> None:
    """Refuse a state that lacks what torch's optimizers make at the first step alone."""
    for group in optimizer.param_groups:
        for name in group["param_names"] if group["amsgrad"] else ():
            if name in by_name and "max_exp_avg_sq" not in by_name[name]:
                raise StateError(
                    f"the checkpoint is of a run without amsgrad: the state of {name} has no "
                    "max_exp_avg_sq, without which torch's optimizers cannot go on; use the Adam "
                    "or AdamW of optimplug, which start it from zeros, or leave out amsgrad"
                )
