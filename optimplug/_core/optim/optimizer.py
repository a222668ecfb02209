"""Optimizer: groups and states, and what is saved of them; a step is in :mod:`.step.stepper`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Set
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import required

from optimplug._core.internals import (
    hook_step_of,
    load_post_hooks,
    load_pre_hooks,
)
from optimplug._core.optim.executions.choice import (
    CHOICES,
    check_choices,
    devices_that_count,
)
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.gradients import (
    check_clipping,
)
from optimplug._core.optim.group_checks import check_group
from optimplug._core.optim.modes import have_modes, join_mode, set_mode
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.shards import is_sharded
from optimplug._core.optim.state import checked_state
from optimplug._core.optim.step.counters import take_apart, with_own_count
from optimplug._core.optim.step.layout import Layout
from optimplug._core.optim.step.stepper import Stepper
from optimplug._core.optim.storage.arguments import (
    Rounding,
    StateDtype,
    check_storage,
    storage_settings,
)
from optimplug._core.optim.storage.coded_state import gatherable, with_numbers
from optimplug._core.optim.storage.stored import stored
from optimplug.errors import ArgumentError

__all__ = ["Optimizer", "required"]


class Optimizer(Stepper):
    """Base class of the optimizers: a rule, run over all groups at once.

    A subclass gives :meth:`rule` and :meth:`check`. State dicts have torch's keys and shapes, so
    checkpoints of ``torch.optim`` load here and those written here load there.

    Args:
        params: tensors, ``(name, tensor)`` pairs, or dicts of either under ``"params"`` with the
            hyperparameters of that group.
        defaults: values for the hyperparameters that a group does not give, and among them, where
            the subclass has them, the choices of execution: ``foreach``, ``fused``,
            ``capturable``, ``differentiable``.
        max_grad_norm: clip the global norm of all gradients to this inside the step, as
            :func:`torch.nn.utils.clip_grad_norm_` before it would. Gradients are left as they are,
            but where an operator of torch's does the step: then they hold the clipped values.
            None: no clipping.
        skip_nonfinite: leave out a step whose global gradient norm is infinite or NaN.
        rounding: how a bfloat16 parameter takes an update; see
            :mod:`optimplug._core.optim.storage.stored`, for the next two as well.
        rounding_seed: what ``rounding="stochastic"`` draws by.
        state_dtype: how moments are kept.
        compact_state: save moments that are kept in 8 bits as such. Neither torch nor another
            number of processes can go on from them; False: as float32, which becomes the same
            codes again.

    Attributes:
        grad_norm: the global gradient norm before clipping at the last step, a zero-dimensional
            tensor; None before the first step, and where neither of the two above asks for it. On
            a GPU it is float32 where gradients are narrower.
        skipped_steps: how many steps ``skip_nonfinite`` has left out. On a GPU that decides by
            itself, to read it, or ``state``, waits for the last step; what groups count themselves
            (``k``, ``rounding_step``) leaves out a skipped step from the next step on.
    """

    facts: ClassVar[Facts]
    """What a user must know of it before choosing it."""
    lengths: ClassVar[tuple[str, ...]] = ()
    """Which hyperparameters are numbers of updates; a recipe may give them as parts of the run."""

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: Rounding = "nearest",
        rounding_seed: int = 0,
        state_dtype: StateDtype | None = None,
        compact_state: bool = False,
    ) -> None:
        check_clipping(max_grad_norm, skip_nonfinite)
        if not isinstance(compact_state, bool):
            raise ArgumentError(f"compact_state must be True or False (got {compact_state!r})")
        if skip_nonfinite and defaults.get("capturable"):
            raise ArgumentError(
                "capturable=True does not support skip_nonfinite=True: to decide waits for the "
                "device, which a captured graph cannot do; leave one of them out"
            )
        self.max_grad_norm = max_grad_norm
        self.skip_nonfinite = skip_nonfinite
        self.compact_state = compact_state
        self.grad_norm: Tensor | None = None
        self.skipped_steps = 0
        self._layout = None
        self._unsettled = None
        check_choices(defaults)
        # What a group does not have is as in torch; so its state dicts have torch's keys.
        defaults = {**defaults, **storage_settings(rounding, rounding_seed, state_dtype)}
        # Without a rate every group has one, and is checked with it.
        if defaults.get("lr", required) is not required:
            self.check(defaults)
            check_storage(self.rule(defaults), defaults, type(self).__name__)
        hook_step_of(type(self))
        super().__init__(params, defaults)
        # GradScaler then leaves it to the step to unscale, and to skip where it found_inf.
        self._step_supports_amp_scaling = bool(defaults.get("fused"))

    made_for: ClassVar[Literal["hidden matrices"] | None] = None
    """Which parameters it is made for; None for all.

    ``"hidden matrices"``: those that multiply what goes through a model, not embeddings, heads,
    norms or biases. Of convolutions, (out, rest) is the matrix.
    """

    @staticmethod
    @abstractmethod
    def check(hyper: Hyper) -> None:
        """Raise ArgumentError if a hyperparameter breaks its rule."""

    @property
    def has_modes(self) -> bool:
        """Whether it validates with other weights than it trains with, as schedule-free ones do."""
        return have_modes(self.param_groups, self.rule)

    def train(self) -> None:
        """Put the weights in place that it trains with; nothing where it :attr:`has_modes` not.

        So a loop may call it, and :meth:`eval`, whatever the optimizer.
        """
        self._settle()
        set_mode(self.param_groups, self.rule, self.state, training=True)

    def eval(self) -> None:
        """Put the weights in place that are validated and saved; as :meth:`train`."""
        self._settle()
        set_mode(self.param_groups, self.rule, self.state, training=False)

    def begin_state(self) -> None:
        """Let every parameter have its state now, and not at its first step.

        For a subclass to call at the end of its constructor, where torch's class does so too.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        rules = [self.stored_rule(group) for group in self.param_groups]
        count_on = devices_that_count(self.defaults)
        with torch.no_grad():
            Layout(self.param_groups, params, rules, self.state, count_on)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with torch's keys: ``state`` by parameter number, ``param_groups``.

        Moments that are kept in 8 bits are float32 in it, but with ``compact_state``.
        """
        self._settle()
        found = super().state_dict()
        # The counters are parts of one tensor here; whoever loads this may want each by itself.
        if isinstance(found.get("state"), Mapping):  # a hook may have made something else of it
            sharded = any(is_sharded(p) for group in self.param_groups for p in group["params"])
            found["state"] = {i: self._saved(kept, sharded) for i, kept in found["state"].items()}
        return found

    def _saved(self, kept: Any, sharded: bool) -> Any:
        """Return what a state dict has of a parameter's state."""
        kept = with_own_count(kept)
        if not isinstance(kept, Mapping):
            return kept
        kept = kept if self.compact_state else with_numbers(kept)
        return gatherable(kept) if sharded else kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this package or of ``torch.optim``.

        Every tensor keeps its dtype. Hyperparameters that an older state lacks stay as they are,
        and how a step is executed stays as it is. So does the storage (``rounding``,
        ``state_dtype``): a state saved under another is converted, which is logged.

        Raises:
            StateError: the state does not fit the parameters. Nothing has changed then.
        """
        self._settle()
        state_dict = dict(state_dict)
        for pre_hook in load_pre_hooks(self):
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        state, groups = checked_state(
            state_dict, self.param_groups, self._checked_storage, self._settings_of
        )
        self.__setstate__({"state": state, "param_groups": groups})
        for post_hook in load_post_hooks(self):
            post_hook(self)

    def _checked_storage(self, group: Hyper, own: Hyper) -> Rule:
        """Return the same with the group's storage; as :meth:`_checked_rule`."""
        rule = self._checked_rule(group, own)
        check_storage(rule, group, type(self).__name__)
        return stored(rule, group)

    def _settings_of(self, own: Hyper) -> Set[str]:
        """Return the names of a group's hyperparameters."""
        return self.defaults.keys()

    def _checked_rule(self, group: Hyper, own: Hyper) -> Rule:
        """Return the rule of a loaded group, which may lack what came after it was saved.

        Args:
            group: as it was saved.
            own: the group of this optimizer that it is for.
        """
        hyper = {**self.defaults, **group}
        self.check(hyper)
        return self.rule(hyper)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own hyperparameters.

        Keys that are not hyperparameters (``name``, say) are the user's own and are kept.

        Raises:
            ArgumentError: a value breaks its rule, a key nearly spells a hyperparameter, or the
                group asks for an execution of its own. The optimizer and the dict are as they were.
        """
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            check_group(self, param_group, self._place_of(param_group))
        super().add_param_group(param_group)
        join_mode(self.param_groups)

    def _place_of(self, group: Mapping[str, Any], number: int | None = None) -> str:
        """Return how messages call a group that is added."""
        number = len(self.param_groups) if number is None else number
        name = f" ({group['name']!r})" if "name" in group else ""
        return f"param_groups[{number}]{name}"

    def __getstate__(self) -> dict[str, Any]:
        own = (
            *("max_grad_norm", "skip_nonfinite", "skipped_steps", "compact_state"),
            "_step_supports_amp_scaling",
        )
        self._settle()
        # Each counter would be written with all others, of whose memory it is a part.
        take_apart(self.state.values())
        self._layout = None
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in own},
            "grad_norm": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has its defaults in the state.
        own = dict({**vars(self), **state}["defaults"])
        super().__setstate__(state)
        self.defaults = own  # torch adds a choice to them, also for a class without it
        self._layout = None
        for group in self.param_groups:
            for key in CHOICES:
                if key in self.defaults:
                    group[key] = self.defaults[key]
                else:
                    group.pop(key, None)
            # A checkpoint of an older version lacks the hyperparameters that came since.
            for key, value in self.defaults.items():
                group.setdefault(key, value)
