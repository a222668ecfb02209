"""Warnings of what bfloat16 weights and moments cannot take: it rounds to nothing at every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.optimizer import Optimizer
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.shards import local
from optimplug._core.sample import sample
from optimplug.errors import Problem
from optimplug.recipe.parameters.groups import Group, Grouping
from optimplug.recipe.resolve import settable_per_group

__all__ = ["lost_update_warnings"]

_HALF_A_UNIT = 2**-9
"""The largest part of a bfloat16 by which it may change and round back, whatever it is."""
_SLOW = 0.99
"""Means that keep more than this at a step are told of where they are bfloat16."""
_SAMPLE = 4096
"""As many elements of each parameter are looked at: the share of all is known to a percent."""


class _Lost(NamedTuple):
    """What a group loses at every step."""

    group: Group
    numel: float
    """How many of its weights it concerns."""
    size: float
    """Of what is lost: a part of the weights, a distance, or a part of a mean."""
    names: tuple[str, ...] = ()
    """Of the means."""


def lost_update_warnings(grouping: Grouping) -> Iterator[Problem]:
    """Find updates that round to nothing, where the optimizer's storage could keep them.

    Of an optimizer whose steps depend on the size of the gradients, such as SGD, nothing is said:
    they are not known before. Of weights that are not there yet, on the meta device, no steps are
    told, and of fake tensors nothing.

    Args:
        grouping: what the rules make of the model.
    """
    if in_dispatch_mode():  # nothing can be tried there
        return
    groups = [group for group in grouping.groups if _has_storage(group)]
    total = sum(group.numel for group in grouping.groups)
    for key, find, words in (
        ("weight_decay", _lost_decay, _of_decay),
        ("lr", _lost_steps, _of_steps),
        ("state_dtype", _stuck_means, _of_means),
    ):
        found = [lost for group in groups if (lost := find(group)) is not None]
        for path in dict.fromkeys(lost.group.optimizer.path for lost in found):
            own = [lost for lost in found if lost.group.optimizer.path == path]
            share = sum(lost.numel for lost in own) / max(1, total)
            yield Problem(f"{path}.{key}", words(own, share))


def _has_storage(group: Group) -> bool:
    """Tell whether it can keep what is lost, and whether there is anything in bfloat16."""
    choice, of_states = group.optimizer, _settings(group).get("state_dtype")
    if not (issubclass(choice.optimizer_class, Optimizer) and "rounding" in choice.known):
        return False
    return of_states == "bfloat16" or any(map(_is_narrow, group.parameters.values()))


def _of_decay(found: Sequence[_Lost], share: float) -> str:
    return (
        f"takes {_range(found)} of a weight in a step, which rounds to nothing in bfloat16 (under "
        f"1/512), for {_percent(share)} of the weights: set rounding to exact, kahan or stochastic"
    )


def _of_steps(found: Sequence[_Lost], share: float) -> str:
    return (
        f"moves a weight by about {_range(found)} in a step, which is under half a unit in the "
        f"last place for {_percent(share)} of the weights, in bfloat16: they stay as they are; set "
        "rounding to exact, kahan or stochastic"
    )


def _of_means(found: Sequence[_Lost], share: float) -> str:
    names = " and ".join(dict.fromkeys(name for lost in found for name in lost.names))
    as_weights = any(_settings(lost.group)["state_dtype"] is None for lost in found)
    instead = "float32, or rounding to exact, which has it so" if as_weights else "float32"
    least = min(lost.size for lost in found)
    effect = "is lost: it does not fall any more" if least < _HALF_A_UNIT else "is rounded far off"
    return (
        f"keeps {names} in bfloat16, of which a step takes {_range(found)} at the most, which "
        f"{effect}, for {_percent(share)} of the weights; set state_dtype to {instead}"
    )


def _range(found: Sequence[_Lost]) -> str:
    least, most = min(lost.size for lost in found), max(lost.size for lost in found)
    return f"{most:.2g}" if f"{least:.2g}" == f"{most:.2g}" else f"{least:.2g} to {most:.2g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def _settings(group: Group) -> dict[str, Any]:
    return {**group.optimizer.hyperparameters, **group.settings}


def _is_narrow(p: Tensor) -> bool:
    return p.dtype == torch.bfloat16


def _rounds(group: Group) -> list[Tensor]:
    """Return the parameters that take each update rounded to the nearest bfloat16."""
    if _settings(group)["rounding"] != "nearest":
        return []
    return list(filter(_is_narrow, group.parameters.values()))


def _lost_decay(group: Group) -> _Lost | None:
    numel = _numel(_rounds(group))
    part = _decay(group) if numel else 0.0
    return _Lost(group, numel, part) if 0 < part < _HALF_A_UNIT else None


def _decay(group: Group) -> float:
    """Return which part of a weight a step takes away beside the gradient; 0 for none.

    It is tried, as what an optimizer does with ``weight_decay`` is its own. Where it is not the
    same part of every weight, whatever the gradient, it is a step like any other, as in Adam.
    """
    if not _settings(group).get("weight_decay"):
        return 0.0
    sizes, gradients = (1.0, 1.0, 10.0), (0.0, 1.0, 1.0)
    ends = []
    for without in (_without_decay(group), {}):
        trial = _trial(group, sizes, **without)
        if _finds_its_rate(trial):
            return 0.0
        _step(trial, gradients)
        ends.append(torch.cat([w.detach() for w in _weights(trial)]))
    starts = torch.cat([_start(size) for size in sizes])
    parts = ((ends[0] - ends[1]) / starts).flatten()
    part = parts[0].item()
    return part if (parts - part).abs().max() <= 0.1 * abs(part) else 0.0


def _without_decay(group: Group) -> dict[str, float]:
    return {"weight_decay": 0.0} if "weight_decay" in group.optimizer.known else {}


def _lost_steps(group: Group) -> _Lost | None:
    facts = _facts(group)
    if facts is None or facts.step is None:
        return None
    hyper = _built(group).param_groups[0]
    numel, sizes = 0.0, [0.0]
    for p in _rounds(group):
        own = local(p.detach())
        if own.is_meta or own.numel() == 0:
            continue
        some = sample(own, _SAMPLE).float()
        size = facts.step(hyper, some.square().mean().sqrt().item())
        if size and (share := _share_that_stays(some, size)):
            numel += share * p.numel()
            sizes.append(size)
    return _Lost(group, numel, max(sizes)) if numel else None


def _facts(group: Group) -> Facts | None:
    """Return what is said of its optimizer; None of a class that is derived from one of ours."""
    found: Facts | None = vars(group.optimizer.optimizer_class).get("facts")
    return found


def _share_that_stays(weights: Tensor, step: float) -> float:
    """Return for how many bfloat16 weights a step rounds to nothing, up and down."""
    stays = [(weights + way).bfloat16() == weights for way in (step, -step)]
    return stays[0].logical_and(stays[1]).float().mean().item()


def _stuck_means(group: Group) -> _Lost | None:
    if _facts(group) is None:
        return None
    optimizer = _built(group)
    rule = optimizer.stored_rule(optimizer.param_groups[0])
    kept = [(p, list(_in_bfloat16(rule.suited(p), p))) for p in group.parameters.values()]
    slow = _slow_means(group) if any(names for _, names in kept) else {}
    numel = _numel(p for p, names in kept if slow.keys() & set(names))
    names = tuple(name for name in slow if any(name in own for _, own in kept))
    return _Lost(group, numel, 1 - min(slow[name] for name in names), names) if names else None


def _slow_means(group: Group) -> dict[str, float]:
    """Return which of a rule's states fall slowly: by name, how much of them a step leaves."""
    trial = _trial(group, [1.0], **_without_decay(group))
    if _finds_its_rate(trial):
        return {}
    _step(trial, [1.0])
    _step(trial, [1.0])
    (kept,) = trial.state.values()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    _step(trial, [0.0])
    left = {name: (kept[name] / before[name]).max().item() for name in before}
    return {name: part for name, part in left.items() if _SLOW < part < 1}


def _in_bfloat16(rule: Rule, p: Tensor) -> Iterator[str]:
    """Give the names of the moments that a rule keeps of a parameter in bfloat16."""
    for spec in rule.state:
        # What has no code is no moment, but a point among the weights, say.
        is_moment = spec.code is not None and not spec.is_weight
        if is_moment and (spec.dtype or p.dtype) == torch.bfloat16:
            yield spec.name


def _finds_its_rate(optimizer: Optimizer) -> bool:
    """Tell whether its first steps say nothing of later ones, as they search for the rate."""
    return bool(optimizer.rule(optimizer.param_groups[0]).measures)


def _trial(group: Group, sizes: Iterable[float], **changed: Any) -> Optimizer:
    """Return a group's optimizer over parameters of two weights, of each size and twice it.

    They and its state are float64: nothing is lost there.
    """
    storage = {"rounding": "nearest", "state_dtype": None}
    with torch.device("cpu"):  # the default may be one without values
        optimizer = _built(group, [_start(size) for size in sizes], **storage, **changed)
        optimizer.train()
    return optimizer


def _start(size: float) -> Tensor:
    return torch.tensor([[size, 2 * size]], dtype=torch.float64, device="cpu")


def _weights(optimizer: Optimizer) -> list[Tensor]:
    found: list[Tensor] = optimizer.param_groups[0]["params"]
    return found


def _step(optimizer: Optimizer, gradients: Iterable[float]) -> None:
    """Update each parameter by a gradient that is the same in its elements."""
    with torch.device("cpu"):
        for p, gradient in zip(_weights(optimizer), gradients, strict=True):
            p.grad = torch.full_like(p, gradient)
            if optimizer.rule(optimizer.param_groups[0]).only_sparse:
                p.grad = _as_row(p.grad)
        optimizer.step()


def _as_row(gradient: Tensor) -> Tensor:
    """Return a gradient of one row as a sparse one that holds it, zeros too."""
    row = torch.zeros(1, 1, dtype=torch.int64)
    return torch.sparse_coo_tensor(row, gradient, gradient.shape, check_invariants=True)


def _built(group: Group, starts: Iterable[Tensor] = (), **changed: Any) -> Optimizer:
    """Return a group's optimizer, with its settings, over parameters that begin so."""
    choice = group.optimizer
    settings = {**_settings(group), **changed}
    cls: type[Any] = choice.optimizer_class
    # How long the run is, and how a matrix is cut, is no matter.
    apart = settings.keys() - choice.known.keys() | {*cls.lengths, "split"}
    own = {key: settings[key] for key in settable_per_group(settings) if key not in apart}
    if "foreach" in choice.known:
        own["foreach"] = False  # nothing is compiled for it
    params = list(map(torch.nn.Parameter, starts)) or [torch.nn.Parameter(_start(0.0))]
    built: Optimizer = cls(params, **own)
    return built


def _numel(params: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in params)
