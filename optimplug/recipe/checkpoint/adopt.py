"""Going on from a checkpoint under a policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from optimplug._core.arguments import owner_of
from optimplug.errors import ArgumentError, StateError, listed
from optimplug.recipe.checkpoint.climbs import (
    climbs_notes,
    climbs_under_way,
    rewarmed,
    where_rates_were,
)
from optimplug.recipe.checkpoint.differences import Comparison, OwnGroup, comparable, own_groups
from optimplug.recipe.checkpoint.kinds import likely_class, means_the_same
from optimplug.recipe.checkpoint.order import Order, misfit, named_by_order
from optimplug.recipe.checkpoint.policy import Resume
from optimplug.recipe.checkpoint.resumption import Change, Rates, Resumption, as_table, in_words
from optimplug.recipe.checkpoint.saved import Saved
from optimplug.recipe.checkpoint.state import adapted_state, exact_schedule, exact_state
from optimplug.recipe.checkpoint.whole import (
    horizon_in,
    horizon_words,
    horizons_differ,
    schedule_changes,
    whole_changes,
)
from optimplug.recipe.provenance import class_path
from optimplug.recipe.schedule.run_state import kept_on_error
from optimplug.recipe.schedule.scheduler import RecipeScheduler
from optimplug.recipe.text.durations import Horizon

__all__ = ["Target", "resume_from", "tell"]

_logger = logging.getLogger("optimplug")


@dataclass(frozen=True)
class Target:
    """What goes on."""

    optimizer: torch.optim.Optimizer
    """What is stepped: the recipe's optimizer, or a trainer's wrapper of it."""
    scheduler: RecipeScheduler
    horizon: Horizon | None
    parameters: Mapping[str, Tensor]
    """All of the model's, by the recipe's names for them."""
    orders: Sequence[Order] = field(default=())
    """Names for states without any, as a trainer's own optimizer would have had them."""

    @property
    def owner(self) -> torch.optim.Optimizer:
        """The optimizer itself."""
        return owner_of(self.optimizer)


def resume_from(saved: Saved, target: Target, how: Resume) -> Resumption:
    """Take over what a checkpoint holds, as far as the policy allows, and say what has changed.

    Args:
        saved: what it holds.
        target: what goes on.
        how: the policy. ``exact``: nothing may be otherwise; ``adapt``: state goes to parameters by
            name, settings are the recipe's, and the schedule goes on from the same update, with
            rates that climb to it if they are to; ``weights``: nothing is taken over.

    Raises:
        StateError: the policy does not allow it, or the state does not fit. Nothing has changed.
        ArgumentError: nothing is to be taken over by a run that has begun; or rates are to climb
            for a time that the horizon has no number for. Nothing has changed.
    """
    if how.policy == "weights":
        return _begin_anew(saved, target)
    climbing = how.climbs_for(target.horizon)
    own = own_groups(target.owner)
    with kept_on_error(target.optimizer, target.owner):
        _refuse_others(saved, own)
        if not saved.are_named:
            saved = named_by_order(saved, own, target.parameters, target.orders)
        comparison = Comparison(saved, own)
        if how.policy == "exact":
            return _go_on(comparison, target)
        return _adapt(comparison, target, climbing)


def tell(found: Resumption) -> None:
    """Say in the log what has changed, on one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    _logger.log(logging.INFO if found.is_exact else logging.WARNING, "%s", found)


def _refuse_others(saved: Saved, own: Sequence[OwnGroup]) -> None:
    """Refuse a state of which nothing can be taken over, as it is another optimizer's.

    Raises:
        StateError: it is.
    """
    classes = {group.cls: group.group for group in own}
    pairs = ((theirs, cls) for theirs in saved.groups for cls in classes)
    if any(means_the_same(saved, theirs, cls, classes[cls]) for theirs, cls in pairs):
        return
    theirs = " and ".join(dict.fromkeys(likely_class(saved, group) for group in saved.groups))
    ours = " and ".join(dict.fromkeys(class_path(group.cls) for group in own))
    raise StateError(
        f"the checkpoint has the state of {theirs}, which means nothing to {ours}; give the recipe "
        "an optimizer that keeps the same state, or resume='weights' to begin anew"
    )


def _go_on(comparison: Comparison, target: Target) -> Resumption:
    """Take over everything, if nothing is otherwise."""
    saved = comparison.saved
    rows = [*_differences(comparison, target)]
    if rows:
        accepts = " (the recipe's settings apply, the schedule goes on from the same update)"
        raise StateError(
            "the checkpoint is not of this run, and resume='exact' lets nothing change:\n"
            + as_table([("what", "in the checkpoint", "here", "accepted by"), *rows])
            + f"\ngive resume='adapt'{accepts}, or resume='weights' to begin anew\n"
            "in a recipe that is 'resume: adapt', on the command line of a trainer --resume adapt"
        )
    scheduler = target.scheduler
    schedule = exact_schedule(comparison) or scheduler.state_dict()
    scheduler.check_state(schedule)
    state, moved = (
        exact_state(comparison, target.optimizer),
        _with_state(comparison, comparison.names),
    )
    horizon, before = horizon_words(horizon_in(saved)), _rates_before(comparison)
    target.optimizer.load_state_dict(state)
    scheduler.load_state_dict(schedule)
    return Resumption(
        "exact",
        scheduler.last_epoch,
        moved,
        rates=_rates(before, target),
        horizon=(horizon, horizon_words(target.horizon)),
    )


def _adapt(comparison: Comparison, target: Target, climbing: int) -> Resumption:
    """Take over what goes on, under the recipe's settings."""
    saved, scheduler = comparison.saved, target.scheduler
    under_way = climbs_under_way(comparison)
    notes = [*saved.notes, *filter(None, [comparison.renamed])]
    memory = None
    if saved.is_ours:
        memory = scheduler.memory_of(saved.schedule or {})
        notes += [
            f"what {label} remembered is left out: its phase is gone" for label in memory.lost
        ]
    dropped = dict(_dropped(comparison, target))
    taken = {n: s for n, s in comparison.names.items() if s not in dropped}
    state = adapted_state(comparison, target.optimizer, taken, notes)
    update, before = _update(saved, target, notes), _rates_before(comparison)
    starts = where_rates_were(comparison)
    found = Resumption(
        "adapt",
        update,
        _with_state(comparison, taken),
        comparison.new,
        dropped,
        _changes(comparison, target),
        horizon=(horizon_words(horizon_in(saved)), horizon_words(target.horizon)),
        schedule=_schedule(comparison, target),
    )
    # All that can be wrong with what somebody has saved is found by now, but by the optimizer.
    target.optimizer.load_state_dict(state)
    schedule = {} if memory and memory.begun else saved.schedule or {}
    told, of_training = map(bool, map(schedule.get, ("_was_told", "_was_told_of_training")))
    scheduler.adopt(update, memory, told, of_training, under_way)
    new = scheduler.climb_from(starts, climbing) if climbing else {}
    found = replace(
        found,
        rates=_rates(before, target),
        rewarmed=tuple(
            rewarmed(scheduler, i, climb, comparison.own[i].label) for i, climb in new.items()
        ),
        notes=tuple(notes),
    )
    if found.is_exact:  # climbs that go on are no change then
        return found
    return replace(found, notes=(*notes, *climbs_notes(scheduler, new)))


def _begin_anew(saved: Saved, target: Target) -> Resumption:
    """Take over nothing."""
    if target.owner.state or target.scheduler.last_epoch > 0:
        raise ArgumentError(
            "resume='weights' lets optimizer and schedule begin anew, but this run has begun; "
            "start another one: recipe.start(model, horizon)"
        )
    own = own_groups(target.owner)
    return Resumption(
        "weights",
        0,
        new=tuple(name for group in own for name in group.names),
        rates=tuple(Rates(group.label, None, float(group.group["lr"])) for group in own),
        horizon=(horizon_words(horizon_in(saved)), horizon_words(target.horizon)),
        notes=("optimizer and schedule begin anew",),
    )


def _update(saved: Saved, target: Target, notes: list[str]) -> int:
    """Return the update from which the schedule goes on."""
    found, stays = saved.update, target.scheduler.last_epoch
    if found is None:
        notes.append(
            f"the checkpoint does not say how many updates there were: the schedule is at {stays}"
        )
        return stays
    total = target.horizon.total_steps if target.horizon else None
    if total is not None and found > total:
        notes.append(f"there were {found:,} updates already, and the run has {total:,}: it is over")
    return found


def _differences(comparison: Comparison, target: Target) -> Iterator[tuple[str, str, str, str]]:
    """Walk the rows of all that is otherwise, each with the policy that accepts it."""
    saved = comparison.saved
    for what, there, here in _names(comparison):
        yield what, there, here, "adapt"
    for change in _changes(comparison, target):
        of = f" of {listed(change.groups, 3)}" if change.groups else ""
        yield f"{change.setting}{of}", in_words(change.before), in_words(change.after), "adapt"
    for change in _schedule(comparison, target):
        yield change.setting, in_words(change.before), in_words(change.after), "adapt"
    for name, why in _misfits(comparison):
        yield f"state of {name}", why, "left out", "adapt"
    before = horizon_in(saved)
    if horizons_differ(before, target.horizon):
        then, now = (str(horizon_words(h)) for h in (before, target.horizon))
        yield "horizon", then, now, "adapt"


def _names(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    if comparison.saved.by_order:
        yield "names", "none", "matched by their order"
    if comparison.renamed:
        yield "names", "other ones", comparison.renamed
    if comparison.new:
        yield "parameters", "none", f"{listed(comparison.new, 5)}"
    if comparison.gone:
        yield "parameters", f"{listed(comparison.gone, 5)}", "none"


def _dropped(comparison: Comparison, target: Target) -> Iterator[tuple[str, str]]:
    """Walk the saved parameters whose state is not taken over, with the reason."""
    saved, numbers = comparison.saved, comparison.saved.numbers
    groups = {name: group for group in comparison.own for name in group.names}
    for name in comparison.gone:
        if saved.state.get(numbers[name]):
            frozen = name in target.parameters
            yield name, "the recipe freezes it" if frozen else "the model has none of that name"
    for own, theirs in comparison.names.items():
        if own in comparison.unfit and saved.state.get(numbers[theirs]):
            yield theirs, f"it is of {comparison.unfit[own]}, not {groups[own].cls.__name__}"
    yield from _misfits(comparison)


def _misfits(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Walk the saved parameters whose state has another shape than it must have here."""
    saved, numbers = comparison.saved, comparison.saved.numbers
    for group in comparison.own:
        for own, p in zip(group.names, group.group["params"], strict=True):
            theirs = comparison.names.get(own)
            if theirs is not None and own not in comparison.unfit:
                found = misfit(own, p, saved.state.get(numbers[theirs], {}), group)
                if found is not None:
                    yield theirs, found


def _changes(comparison: Comparison, target: Target) -> tuple[Change, ...]:
    whole = whole_changes(comparison.saved, target.scheduler)
    return (*comparison.optimizers(), *comparison.settings(), *whole)


def _schedule(comparison: Comparison, target: Target) -> tuple[Change, ...]:
    cut = comparison.cut()
    changes = schedule_changes(comparison.saved, target.scheduler)
    return (*([] if cut is None else [cut]), *changes)


def _rates_before(comparison: Comparison) -> list[float | None]:
    """Return the rate that each group here had as the checkpoint was saved."""
    found: list[float | None] = []
    for own in comparison.own:
        rates = [comparable(theirs.settings.get("lr")) for theirs in comparison.donors(own)]
        found.append(next((float(r) for r in rates if isinstance(r, int | float)), None))
    return found


def _rates(before: Sequence[float | None], target: Target) -> tuple[Rates, ...]:
    own = own_groups(target.owner)
    pairs = zip(own, before, strict=True)
    return tuple(Rates(group.label, rate, float(group.group["lr"])) for group, rate in pairs)


def _with_state(comparison: Comparison, names: Mapping[str, str]) -> tuple[str, ...]:
    saved = comparison.saved
    return tuple(own for own, there in names.items() if saved.state.get(saved.numbers[there]))
