"""Going on with a recipe where a Trainer without one has stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from optimplug import optim
from optimplug._core.arguments import owner_of
from optimplug.errors import StateError
from optimplug.recipe import RecipeScheduler

__all__ = ["resume"]

# These keep the same state, and read it alike.
_ADAMS = (torch.optim.AdamW, torch.optim.Adam, optim.AdamW, optim.Adam)


def resume(
    checkpoint: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: RecipeScheduler,
    groups: Sequence[Sequence[str]],
    updates: int,
) -> str | None:
    """Go on from a checkpoint, if it is not of a recipe and so not for the Trainer to load.

    What a run without a recipe has of the optimizer's state is loaded by parameter name. The
    schedule goes to the update where the run was.

    Args:
        checkpoint: the folder.
        optimizer: the recipe's, whose groups name their parameters.
        scheduler: the recipe's.
        groups: the parameters of each group of the Trainer's own optimizer, in its order.
        updates: how many there were; not asked for where the saved schedule knows.

    Returns:
        One line that says what has changed; None if the checkpoint is of a recipe.

    Raises:
        StateError: a part of the checkpoint is missing, or the optimizer's state does not fit, or
            is neither AdamW's nor that of a recipe's optimizer. Nothing has changed then.
    """
    if not (checkpoint / SCHEDULER_NAME).is_file():
        return _without_state(checkpoint, scheduler, updates)
    schedule = torch.load(checkpoint / SCHEDULER_NAME, map_location="cpu", weights_only=True)
    if "fingerprint" in schedule:
        scheduler._check_state(schedule)  # before the Trainer loads the optimizer's
        return None
    saved = _optimizer_state(checkpoint)
    by_name = _by_name(saved, groups)
    own = optimizer.state_dict()
    names = [name for group in own["param_groups"] for name in group["param_names"]]
    _check(by_name, optimizer, names, saved["param_groups"])
    state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
    optimizer.load_state_dict({**own, "state": state})
    # Torch's ReduceLROnPlateau has no base_lrs, and counts evaluations.
    scheduler.go_to(schedule["last_epoch"] if "base_lrs" in schedule else updates)
    left = len(by_name.keys() - set(names))
    named = _are_named(saved["param_groups"])
    kind = "whose schedule was the Trainer's own" if named else "without a recipe"
    return (
        f"{checkpoint.name} is of a run {kind}, with {_summary(saved['param_groups'])}; "
        f"from update {scheduler.last_epoch} on the recipe applies, with "
        f"{_summary(optimizer.param_groups)}; the optimizer's state is taken over by parameter name"
        + (f", but for {left} parameters that the recipe freezes" if left else "")
    )


def _without_state(checkpoint: Path, scheduler: RecipeScheduler, updates: int) -> str:
    """Go on from a checkpoint of save_only_model; the Trainer would start the schedule anew."""
    if any("optimizer" in file.name for file in checkpoint.iterdir()):
        raise StateError(
            f"{checkpoint} has a state of the optimizer, but no {SCHEDULER_NAME}: the Trainer "
            "would load neither; bring that file back, or take the optimizer's away to start both "
            "anew"
        )
    scheduler.go_to(updates)
    return (
        f"{checkpoint.name} has no state of the optimizer or the schedule: the optimizer starts "
        f"anew, the schedule goes on from update {updates}"
    )


def _optimizer_state(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / OPTIMIZER_NAME
    if not file.is_file():
        raise StateError(
            f"{checkpoint} is of a run without a recipe, and has no {OPTIMIZER_NAME}: the state of "
            "a sharded optimizer cannot be taken over"
        )
    saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return saved


def _are_named(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a recipe has made the groups, and only the schedule was the Trainer's."""
    return all("param_names" in group for group in groups)


def _are_adams(groups: Sequence[Mapping[str, Any]]) -> bool:
    return all("betas" in group and "amsgrad" in group for group in groups)


def _by_name(
    saved: Mapping[str, Any], groups: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Return the saved state of every parameter that has one."""
    theirs = saved["param_groups"]
    if not _are_named(theirs) and not _are_adams(theirs):
        raise StateError(
            "the checkpoint is of a run without a recipe, whose optimizer was not AdamW: its state "
            "cannot be taken over"
        )
    if _are_named(theirs):
        groups = [group["param_names"] for group in theirs]
    sizes = [len(group["params"]) for group in theirs]
    if sizes != [len(names) for names in groups]:
        raise StateError(
            "the checkpoint is of a run without a recipe, and its optimizer's state cannot be "
            f"matched: its groups have {sizes} parameters, but those of the Trainer's own "
            f"optimizer would have {[len(names) for names in groups]}"
        )
    numbers = {
        name: number
        for group, names in zip(theirs, groups, strict=True)
        for number, name in zip(group["params"], names, strict=True)
    }
    state = saved["state"]
    return {name: state[number] for name, number in numbers.items() if state.get(number)}


def _check(
    by_name: Mapping[str, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    theirs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse a state that the optimizer cannot use."""
    owner = owner_of(optimizer)
    if _are_named(theirs) and not (_are_adams(theirs) and type(owner) in _ADAMS):
        _check_alike(by_name, owner, theirs)
        return
    if type(owner) not in _ADAMS:
        raise StateError(
            "the checkpoint is of a run with AdamW, whose state cannot be taken over by "
            f"{type(owner).__name__}; a recipe that goes on from it needs AdamW or Adam"
        )
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for name, p in zip(names, parameters, strict=True):
        for key, value in by_name.get(name, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.shape != p.shape:
                raise StateError(
                    "the checkpoint is of a run without a recipe, and its optimizer's state cannot "
                    f"be matched: {key} of {name} has the shape {tuple(value.shape)}, the "
                    f"parameter {tuple(p.shape)}"
                )
    if not isinstance(owner, optim.Optimizer):
        _check_amsgrad(by_name, optimizer)


def _check_alike(
    by_name: Mapping[str, Mapping[str, Any]],
    owner: torch.optim.Optimizer,
    theirs: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse the state of another kind of optimizer; whether it is whole is for this one to say."""
    if isinstance(owner, optim.Optimizer):
        rules = [owner.rule({**owner.defaults, **group}) for group in owner.param_groups]
        kept = {"step"}.union(*((*rule.state_names, *rule.variant_state) for rule in rules))
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


def _summary(groups: Sequence[Mapping[str, Any]]) -> str:
    rates = sorted({float(group["lr"]) for group in groups})
    span = " to ".join(f"{lr:.3g}" for lr in {rates[0]: 0, rates[-1]: 0})
    return f"{len(groups)} group{'s' if len(groups) > 1 else ''}, lr {span}"
