"""What a phase may say: the schedulers and presets that it can name, and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from optimplug.errors import RecipeError, did_you_mean
from optimplug.optim import lr_scheduler
from optimplug.optim.lr_scheduler import LRScheduler
from optimplug.recipe.keywords import keywords_of
from optimplug.recipe.schedule.presets import PRESETS
from optimplug.recipe.text.schema.phases import PhaseSpec

__all__ = [
    "ELSEWHERE",
    "SCHEDULERS",
    "SchedulerRow",
    "Vocabulary",
    "arguments_of",
    "length_argument",
    "preset_names",
    "row_of",
    "scheduler_class",
    "scheduler_names",
    "scheduler_of",
    "vocabulary",
]


class SchedulerRow(NamedTuple):
    """How a phase speaks of one scheduler of ``optimplug.optim.lr_scheduler``."""

    counts: tuple[str, ...] = ()
    """The arguments that count time: a phase may give them as durations."""
    length: str | None = None
    """The one of them that is as long as the phase, unless the phase says otherwise."""
    minimum: str | None = None
    """The argument that is an absolute least rate. A phase says ``floor`` instead, a ratio of each
    group's own rate, so that groups keep their distances."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Arguments that every phase has alike."""
    needs_floor: bool = False
    no_floor_hint: str = ""
    """What to use instead of ``floor`` where there is no minimum."""
    turns: bool = False
    """Whether it goes back to where it began after its length, and so on."""
    springs: bool = False
    """Whether it springs back to the group's own rate where its length ends."""
    follows_metric: bool = False
    preset: str | None = None
    """The Trainer's name for it (``lr_scheduler_type``), where that is no function of time."""
    is_phase: bool = True
    """False for what cannot be said in a recipe: it composes by itself, and knows no functions."""


# A phase schedules the rate alone, and where the scheduler works each group's own rate is 1.
_CYCLE = MappingProxyType({"max_lr": 1.0, "cycle_momentum": False})
_NO_PHASE = SchedulerRow(is_phase=False)

SCHEDULERS: Mapping[str, SchedulerRow] = MappingProxyType(
    {
        "ChainedScheduler": _NO_PHASE,
        "ConstantLR": SchedulerRow(("total_iters",), "total_iters", springs=True),
        "CosineAnnealingLR": SchedulerRow(("T_max",), "T_max", minimum="eta_min", turns=True),
        "CosineAnnealingWarmRestarts": SchedulerRow(("T_0",), "T_0", minimum="eta_min"),
        "CyclicLR": SchedulerRow(
            ("step_size_up", "step_size_down"), minimum="base_lr", fixed=_CYCLE, needs_floor=True
        ),
        "ExponentialLR": SchedulerRow(),
        "LRScheduler": _NO_PHASE,
        "LambdaLR": _NO_PHASE,
        "LinearLR": SchedulerRow(
            ("total_iters",), "total_iters", no_floor_hint="; use 'end_factor'"
        ),
        "MultiStepLR": SchedulerRow(("milestones",)),
        "MultiplicativeLR": _NO_PHASE,
        "OneCycleLR": SchedulerRow(("total_steps",), "total_steps", fixed=_CYCLE),
        "PolynomialLR": SchedulerRow(("total_iters",), "total_iters"),
        "ReduceLROnPlateau": SchedulerRow(
            minimum="min_lr", follows_metric=True, preset="reduce_lr_on_plateau"
        ),
        "SequentialLR": _NO_PHASE,
        "StepLR": SchedulerRow(("step_size",)),
    }
)
"""All that recipes know of each class, by its name: the only place that lists these names."""

_PRESET = SchedulerRow(("num_stable_steps", "num_decay_steps", "timescale"))
_BY_PRESET = {row.preset: name for name, row in SCHEDULERS.items() if row.preset is not None}

# What a phase says in another way, or cannot say at all.
_NOT_ARGUMENTS = ("optimizer", "last_epoch", "verbose")
_RATE_ALONE = "is no part of a phase, which schedules the rate alone"
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "max_lr": "is absolute; the peak of a phase is each group's own lr",
        "cycle_momentum": _RATE_ALONE,
        "base_momentum": _RATE_ALONE,
        "max_momentum": _RATE_ALONE,
        "scale_fn": "is a function; use 'mode'",
        "scale_mode": "is for a function; use 'mode'",
        "epochs": "is not needed; the length of the phase is 'for'",
        "steps_per_epoch": "is not needed; the length of the phase is 'for'",
    }
)
"""Arguments of schedulers that a phase does not take, each with what to do instead."""


class Vocabulary(NamedTuple):
    """What a phase of some scheduler or preset may say."""

    arguments: dict[str, inspect.Parameter]
    durations: list[str]
    """Which of the arguments count time."""
    keys: list[str]
    """What else, of the keys of every phase."""
    required: list[str]


def scheduler_names() -> list[str]:
    """Return the schedulers that a phase can name."""
    return [name for name in lr_scheduler.__all__ if SCHEDULERS[name].is_phase]


def preset_names() -> list[str]:
    """Return the presets that a phase can name."""
    return [*PRESETS, *_BY_PRESET]


def scheduler_class(name: str, path: str) -> type[LRScheduler]:
    """Return the scheduler of that name in optimplug.optim.lr_scheduler.

    Raises:
        RecipeError: there is none that a phase can name; the problem is at ``path``.
    """
    known = scheduler_names()
    if name.lower() in preset_names():
        message = f"no scheduler {name!r}; it is a preset: write 'preset: {name.lower()}'"
        raise RecipeError.at(path, message)
    if name not in known:
        raise RecipeError.at(path, f"no scheduler {name!r}{did_you_mean(name, known)}")
    return getattr(lr_scheduler, name)  # type: ignore[no-any-return]


def scheduler_of(spec: PhaseSpec) -> str | None:
    """Return the name of the scheduler that a phase means; None for a function of time."""
    return spec.name or _BY_PRESET.get(spec.preset or "")


def row_of(spec: PhaseSpec) -> SchedulerRow:
    """Return the table's row for a phase: of its scheduler, or the one that presets share."""
    name = scheduler_of(spec)
    # A name that does not exist has no row either; `arguments_of` is who refuses it.
    return _PRESET if name is None else SCHEDULERS.get(name, SchedulerRow())


def arguments_of(spec: PhaseSpec, path: str) -> Mapping[str, inspect.Parameter]:
    """Return the arguments that a scheduler or a preset takes in a recipe.

    Raises:
        RecipeError: there is no such scheduler or preset.
    """
    name = scheduler_of(spec)
    if name is not None:
        cls = scheduler_class(name, f"{path}.name")
        return keywords_of(cls, without=[*_NOT_ARGUMENTS, *ELSEWHERE])
    preset = PRESETS.get(spec.preset or "")
    if preset is None:
        hint = did_you_mean(spec.preset or "", preset_names())
        raise RecipeError.at(f"{path}.preset", f"no preset {spec.preset!r}{hint}")
    return keywords_of(preset, without=("t", "warmup", "total", "lr"))


def vocabulary(spec: PhaseSpec) -> Vocabulary:
    """Return what a phase may say, by its name or preset alone."""
    row = row_of(spec)
    known = {key: p for key, p in arguments_of(spec, "").items() if key != row.minimum}
    keys = ["for", "from", "every", "of"]
    keys += ["floor"] if row.minimum else []
    keys += ["monitor", "of_training"] if row.follows_metric else ["warmup"] if spec.preset else []
    empty = [key for key, p in known.items() if p.default is inspect.Parameter.empty]
    needed = [key for key in empty if key != row.length]
    needed += ["monitor"] if row.follows_metric else ["floor"] if row.needs_floor else []
    return Vocabulary(known, [key for key in row.counts if key in known], keys, needed)


def length_argument(spec: PhaseSpec) -> str:
    """Return what a phase calls the argument that is a duration, for errors about it."""
    row = row_of(spec)
    named = [key for key in row.counts if key in (spec.model_extra or {})]
    return (named or [row.length or "for"])[0]
