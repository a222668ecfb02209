"""MultiOptimizer: another optimizer for each group, in one step."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from functools import lru_cache
from typing import Any

import torch

from optimplug._core.internals import unhooked_step
from optimplug._core.optim.executions.choice import CHOICES
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.group_checks import StandIn, speaks_of
from optimplug._core.optim.optimizer import Optimizer, required
from optimplug._core.optim.rule import Hyper, Rule
from optimplug.errors import ArgumentError, did_you_mean, nearest

__all__ = ["MultiOptimizer", "joined_class", "optimizer_named"]

_FOR_ALL = (*CHOICES, "max_grad_norm", "skip_nonfinite", "compact_state")
"""What is the same for all groups, so that none can have its own."""


class MultiOptimizer(Optimizer):
    r"""Several optimizers in one: every group names its own.

    All else is there once: one step, one global norm for clipping, one state dict, one scheduler.
    Each parameter moves exactly as under its optimizer alone, and has that one's state. A group has
    the hyperparameters of its optimizer, with that one's defaults. In a state dict it has its name
    under ``optimizer``; a state is loaded only where each group has the optimizer that it was saved
    with (Adam and AdamW mean the same).

    Args:
        params: dicts, each with ``"params"`` (tensors, or ``(name, tensor)`` pairs),
            ``"optimizer"`` (the name of one of ``optimplug.optim``, its class, or a class derived
            from one, by itself or by its import path), and that one's hyperparameters.
        foreach: as in :class:`~optimplug.optim.Adam`, for all groups together.
        capturable: likewise; every optimizer must have it.
        differentiable: likewise.
        fused: likewise; every optimizer must have it.
        max_grad_norm: clip the global gradient norm over all groups, whatever their optimizers, to
            this inside the step; None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        compact_state: save moments that are kept in 8 bits as such; see :class:`.Optimizer`.

    Raises:
        ArgumentError: a group has no optimizer, or one that cannot be one of several (its step is
            its own, or it is none of this package's), a key that its optimizer lacks, or a value
            that breaks its rule.
        GradientError: at a step, a gradient is sparse where its optimizer takes none.

    Example:
        >>> import torch
        >>> from optimplug.optim import MultiOptimizer
        >>> matrix, bias = torch.ones(2, 2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> optimizer = MultiOptimizer(
        ...     [
        ...         {"params": [matrix], "optimizer": "Lion", "lr": 0.5},
        ...         {"params": [bias], "optimizer": "SGD", "lr": 0.25},
        ...     ],
        ...     max_grad_norm=10.0,
        ... )
        >>> (2 * matrix.sum() + bias.sum()).backward()
        >>> optimizer.step()
        >>> matrix.tolist(), bias.tolist()
        ([[0.5, 0.5], [0.5, 0.5]], [0.75, 0.75])
    """

    facts = Facts(
        purpose="several optimizers in one step, each group under its own",
        rate=None,
        rate_means="that of each group's optimizer",
        paper="",
        link="",
        not_for="the optimizer of a recipe, which names several under groups",
    )

    def __init__(
        self,
        params: Any,
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        compact_state: bool = False,
    ) -> None:
        defaults = {
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(
            params,
            defaults,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            compact_state=compact_state,
        )

    @staticmethod
    def rule(hyper: Hyper) -> Rule:
        return optimizer_named(hyper["optimizer"]).rule(hyper)

    @staticmethod
    def check(hyper: Hyper) -> None:
        optimizer_named(hyper["optimizer"]).check(hyper)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Those of all groups' optimizers, with their defaults; of several, the first group's."""
        found: dict[str, Any] = {}
        for group in self.param_groups:
            found = {**_defaults_of(optimizer_named(group["optimizer"])), **found}
        return found

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with an optimizer and its hyperparameters.

        Keys that are a hyperparameter of no optimizer (``name``, say) are the user's own and are
        kept.

        Raises:
            ArgumentError: as for the class. The optimizer and the dict are as they were.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # which refuses it in torch's words
            return
        where = self._place_of(param_group)
        if "optimizer" not in param_group:
            raise ArgumentError(
                f"{where}: optimizer is required in every group of a MultiOptimizer, such as "
                "'AdamW'; where all have the same, use that one itself"
            )
        try:
            cls = joined_class(param_group["optimizer"])
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from None
        _check_keys(cls, param_group, where)
        alone = self._alone(cls, param_group, where)
        # What is for all groups is judged with them, as in any other optimizer.
        chosen = {key: param_group[key] for key in _FOR_ALL if key in param_group}
        super().add_param_group({**alone.param_groups[0], **chosen, "optimizer": _name_of(cls)})
        self.state.update(alone.state)  # of those that have one before their first step

    def _alone(self, cls: type[Optimizer], group: Mapping[str, Any], where: str) -> Optimizer:
        """Return a group's optimizer over it alone, which completes and checks the group."""
        arguments = inspect.signature(cls).parameters.keys() - {"params", *_FOR_ALL}
        given = {key: value for key, value in group.items() if key not in ("optimizer", *_FOR_ALL)}
        settings = {key: given.pop(key) for key in arguments & given.keys()}
        for key in CHOICES:
            if key in inspect.signature(cls).parameters:
                settings[key] = self.defaults[key]
            elif self.defaults[key]:
                raise ArgumentError(
                    f"{where}: {key}=True is a choice for all groups together, and {cls.__name__} "
                    "has no such argument; leave it out"
                )
        try:
            return cls([given], **settings)
        except ValueError as error:
            reason = str(error).removeprefix(self._place_of(group, 0)).removeprefix(": ")
            raise ArgumentError(f"{where}: {cls.__name__}: {reason}") from None

    def _settings_of(self, own: Hyper) -> Set[str]:
        return _defaults_of(optimizer_named(own["optimizer"])).keys() - {*CHOICES}

    def _checked_rule(self, group: Hyper, own: Hyper) -> Rule:
        if "optimizer" not in group:
            raise ArgumentError(
                f"names no optimizer, where this one has {own['optimizer']}: it was not saved by a "
                "MultiOptimizer; load it into an optimizer of the class that saved it"
            )
        hyper = {**_defaults_of(optimizer_named(own["optimizer"])), **group}
        rule = super()._checked_rule({**hyper, "optimizer": own["optimizer"]}, own)
        if group["optimizer"] != own["optimizer"]:
            # What a checkpoint names is not imported: it may come from anywhere.
            saved = _own().get(group["optimizer"])
            if saved is None or type(saved.rule({**_defaults_of(saved), **hyper})) is not type(
                rule
            ):
                raise ArgumentError(
                    f"was saved by {group['optimizer']}, whose state means nothing to "
                    f"{own['optimizer']}"
                )
        return rule

    def __setstate__(self, state: dict[str, Any]) -> None:
        orders = [list(group) for group in state.get("param_groups", ())]
        for group in state.get("param_groups", ()):
            cls = optimizer_named(group["optimizer"])
            alone = cls.__new__(cls)
            alone.defaults = dict(_defaults_of(cls))
            alone.__setstate__({"state": {}, "param_groups": [group]})  # completes the group
        super().__setstate__(state)
        for group, order in zip(self.param_groups, orders, strict=False):
            completed = {**{key: group[key] for key in order if key in group}, **group}
            group.clear()
            group.update(completed)


def joined_class(optimizer: object) -> type[Optimizer]:
    """Return the class that a group names, if it can be one of several in one step.

    Args:
        optimizer: a name in ``optimplug.optim``, an import path, or a class.

    Raises:
        ArgumentError: there is none, or it cannot.

    Example:
        >>> joined_class("AdamW").__name__
        'AdamW'
    """
    cls = _imported(optimizer) if isinstance(optimizer, str) else optimizer
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ArgumentError(
            f"optimizer must be the name of an optimizer, or its class (got {optimizer!r})"
        )
    if not issubclass(cls, Optimizer) or inspect.isabstract(cls) or cls is MultiOptimizer:
        ours = f"; write {cls.__name__!r}" if cls.__name__ in _own() else ""
        raise ArgumentError(
            f"{cls.__module__}.{cls.__name__} cannot be one of several optimizers: each must be of "
            f"optimplug.optim, or derived from one of these{ours}"
        )
    if unhooked_step(cls) is not unhooked_step(Optimizer):
        raise ArgumentError(
            f"{cls.__name__} cannot be one of several optimizers: its step is more than an update "
            "of each parameter; give its parameters to an optimizer of their own"
        )
    if "." in cls.__qualname__:
        raise ArgumentError(
            f"{cls.__qualname__} cannot be imported by the name that a state dict would have of "
            "it; define it at the top of a module"
        )
    return cls


@lru_cache  # asked for at every step, for every group
def optimizer_named(name: str) -> type[Optimizer]:
    """Return the optimizer of a name as it stands in groups: one of this package's, or a path.

    Raises:
        ArgumentError: there is none.
    """
    found: type[Optimizer] = _imported(name)
    return found


def _imported(name: str) -> Any:
    own = _own()
    if name in own:
        return own[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ArgumentError(f"no optimizer {name!r}{did_you_mean(name, sorted(own))}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"no optimizer {name!r}: {error}") from None


def _name_of(cls: type[Optimizer]) -> str:
    return (
        cls.__name__ if _own().get(cls.__name__) is cls else f"{cls.__module__}.{cls.__qualname__}"
    )


def _own() -> dict[str, type[Optimizer]]:
    """Return the optimizers of this package, by name."""
    here = __name__.rpartition(".")[0]
    return {
        cls.__name__: cls
        for cls in _derived(Optimizer)
        if cls.__module__.startswith(f"{here}.") and cls is not MultiOptimizer
    }


def _derived(cls: type[Any]) -> Iterator[type[Optimizer]]:
    for derived in cls.__subclasses__():
        yield derived
        yield from _derived(derived)


@lru_cache
def _defaults_of(cls: Callable[..., Optimizer]) -> Mapping[str, Any]:
    """Return the hyperparameters of an optimizer where a group does not give them."""
    stand_in = StandIn(torch.zeros(1, 1))  # a matrix, as some of others' take nothing else
    # A rate is given only where one must be: it may contradict other defaults.
    rate = {"lr": 1e-3} if inspect.signature(cls).parameters["lr"].default is required else {}
    return cls([{"params": [stand_in], **rate}]).defaults


def _check_keys(cls: type[Optimizer], group: Mapping[str, Any], where: str) -> None:
    """Refuse what is a hyperparameter of other optimizers, or nearly one of this.

    Raises:
        ArgumentError: there is one; it names the class, the key, and the nearest that it has.
    """
    known = _hyperparameters(cls)
    others = {key for other in _own().values() for key in _hyperparameters(other)}
    for key in group.keys() - known - {"params", "optimizer", *_FOR_ALL}:
        meant = nearest(key, known, cutoff=0.85)
        if key in others or (meant is not None and not speaks_of(key, meant)):
            hint = did_you_mean(key, sorted(known))
            raise ArgumentError(f"{where}: {cls.__name__} has no {key!r}{hint}")


@lru_cache
def _hyperparameters(cls: type[Optimizer]) -> Collection[str]:
    """Return what groups of an optimizer may set, by the arguments of its class and its bases."""
    bases = [base for base in cls.__mro__ if issubclass(base, Optimizer) and base is not Optimizer]
    found = {key for base in bases for key in inspect.signature(base).parameters}
    return found - {"params", *_FOR_ALL}
