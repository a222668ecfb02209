"""Optimizer: groups and state; gathers a step's work and hands it to an execution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.optim.optimizer import required

from optimplug._core.internals import (
    hook_step_of,
    in_dispatch_mode,
    load_post_hooks,
    load_pre_hooks,
    outside_graphs,
)
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.choice import (
    CHOICES,
    DeviceNorm,
    check_choices,
    chosen,
    devices_that_count,
    norm_on_device,
    prepare,
    waits_for_nothing,
)
from optimplug._core.optim.executions.compiled import ReadyCompiled
from optimplug._core.optim.executions.execution import Ready
from optimplug._core.optim.facts import Facts
from optimplug._core.optim.gradients import (
    check_clipping,
    clip_coefficient,
    global_norm,
    prepared_norm,
    refuse_flattened,
)
from optimplug._core.optim.group_checks import check_group
from optimplug._core.optim.modes import check_mode, have_modes, join_mode, set_mode
from optimplug._core.optim.refusals import refuse_dense
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.state import checked_state
from optimplug._core.optim.step.counters import take_apart, with_own_count
from optimplug._core.optim.step.layout import Layout, WayBack
from optimplug._core.optim.step.repeat import Repeat
from optimplug._core.optim.step.totals import totals
from optimplug._core.optim.step.unsettled import Unsettled
from optimplug._core.optim.storage.checks import check_storage
from optimplug._core.optim.storage.coded_state import gatherable, with_numbers
from optimplug._core.optim.storage.stored import (
    Rounding,
    StateDtype,
    storage_settings,
    stored,
    stored_as_asked,
)
from optimplug.errors import ArgumentError

__all__ = ["Optimizer", "required"]


class Optimizer(torch.optim.Optimizer, ABC):
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
        self._layout: Layout | None = None
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

    _unsettled: Unsettled | None = None
    """The last step, while it is not known whether the device has skipped it."""

    made_for: ClassVar[Literal["hidden matrices"] | None] = None
    """Which parameters it is made for; None for all.

    ``"hidden matrices"``: those that multiply what goes through a model, not embeddings, heads,
    norms or biases. Of convolutions, (out, rest) is the matrix.
    """

    @staticmethod
    @abstractmethod
    def rule(hyper: Hyper) -> Rule:
        """Return the update rule that a group's hyperparameters ask for."""

    @classmethod
    def stored_rule(cls, hyper: Hyper) -> Rule:
        """Return the same with the storage that the group asks for: what a step runs."""
        return stored_as_asked(cls.rule(hyper), hyper)

    @staticmethod
    @abstractmethod
    def check(hyper: Hyper) -> None:
        """Raise ArgumentError if a hyperparameter breaks its rule."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; called once, before the update.

        Returns:
            What the closure returned, or None without one.
        """
        self._settle()
        check_mode(self.param_groups, self.rule)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._repeated():
            with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
                self._update()
        return loss

    def _repeated(self) -> bool:
        """Do the step with what the last one has found, where all is as it was; tell if so."""
        layout = self._layout
        again = None if layout is None else layout.again
        if layout is None or again is None or torch.compiler.is_compiling() or self._is_scaled:
            return False
        if again.choices != chosen(self.defaults):
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        ready = again.prepare(self.param_groups, grads, self.stored_rule, self.state)
        if ready is None:
            layout.attempts -= again.times < 2  # it was made for less than it has cost
            layout.again = None
            return False
        scale = None
        if self._needs_norm:
            with torch.no_grad():
                scale = self._gradient_scale(grads, ready, None)
            if self._skips():
                return True
        again.count()
        for each in ready:
            each.run(scale, None)
        return True

    @property
    def _is_scaled(self) -> bool:
        """Whether a GradScaler has lent what it does for the time of a step."""
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        return scale is not None or found_inf is not None

    @outside_graphs
    def _update(self) -> None:
        groups = self.param_groups
        grads = [p.grad for group in groups for p in group["params"]]
        # GradScaler lends these two for the time of a step.
        amp_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        scale: Tensor | None
        try:
            # What fails here fails before any parameter has moved.
            known = self._layout
            batches, ready = self._prepared(groups, grads)
            there = self._norm_on_device(ready, amp_scale, found_inf)
            if there is not None:
                scale, found_inf, skips = there.scale, there.skip, False
            else:
                scale = self._gradient_scale(grads, ready, amp_scale)
                unwatched = waits_for_nothing(ready)
                found_inf = self._skip_there(found_inf) if unwatched else found_inf
                skips = not unwatched and self._skips()
        except BaseException:
            self._forget_first()
            raise
        layout = cast("Layout", self._layout)
        unwatched = found_inf is not None and waits_for_nothing(ready)
        if not (skips or unwatched) and found_inf is not None and layout.must_know_of_skips:
            skips = bool(found_inf)
        if skips:
            self._forget_first()
            return
        way_back = layout.way_back(groups, self.state) if unwatched else None
        changed = self._run(layout, batches, ready, scale, found_inf)
        if way_back is not None:
            take_back = partial(self._take_back, way_back, changed)
            self._unsettled = Unsettled(cast("Tensor", found_inf), take_back)
        elif found_inf is not None:
            layout.advance(-found_inf)
        elif layout is known and layout.attempts and all(type(r) is ReadyCompiled for r in ready):
            layout.again = Repeat.of(layout, groups, grads, self.state, chosen(self.defaults))
            layout.attempts -= layout.again is None

    def _run(
        self,
        layout: Layout,
        batches: list[Batch],
        ready: list[Ready],
        scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> dict[int, dict[str, Any]]:
        """Do the update, and count it; return what changes in the settings of groups."""
        numbers, measured = layout.next_numbers(batches), []
        layout.advance(1)
        for batch, prepared in zip(batches, ready, strict=True):
            measured.append(prepared.run(scale, found_inf))
            if batch.is_sharded:
                # What worked on the shards has marked those as changed, for autograd.
                torch.autograd.graph.increment_version(batch.owners)
        layout.write(numbers)
        groups = self.param_groups
        settings = layout.next_settings(groups, self.state, totals(batches, measured))
        for i, changed in settings.items():
            groups[i].update(changed)
        return settings

    def _take_back(self, way_back: WayBack, changed: Mapping[int, Mapping[str, Any]]) -> None:
        """Take back what was counted for a step that the device has skipped."""
        if way_back(changed):
            self._layout = None
        vars(self)["skipped_steps"] += self.skip_nonfinite

    def _settle(self) -> None:
        """Take the last step back where the device has skipped it."""
        last, self._unsettled = self._unsettled, None
        if last is not None:
            last.settle()

    def _own(self, name: str) -> Any:
        """Return an attribute of this object; a wrapper of this class may have none."""
        try:
            return vars(self)[name]
        except KeyError:
            raise AttributeError(name) from None  # it then asks what it wraps

    @property
    def skipped_steps(self) -> int:
        """How many steps ``skip_nonfinite`` has left out."""
        self._settle()
        return cast("int", self._own("skipped_steps"))

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        vars(self)["skipped_steps"] = count

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """What is kept for each parameter, by the parameter, under torch's names."""
        self._settle()
        return cast("defaultdict[Tensor, Any]", self._own("state"))

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        vars(self)["state"] = state

    def _prepared(
        self, groups: list[dict[str, Any]], grads: list[Tensor | None]
    ) -> tuple[list[Batch], list[Ready]]:
        """Return this step's work, ready to be run."""
        rules = [self.stored_rule(group) for group in groups]
        before = self._layout
        if before is not None and before.fits(groups, grads, rules, self.state):
            batches = before.batches(groups, grads, self.state)
            if batches is not None:
                ready = [prepare(batch, self.defaults) for batch in batches]
                if None not in ready:
                    return batches, cast("list[Ready]", ready)
            before = None  # some tensor is not what it was
        elif before is not None and not before.holds(groups, rules, self.state):
            before = None
        if self._needs_norm:
            refuse_flattened(self.param_groups)
        refuse_dense(groups, grads, rules)
        count_on = devices_that_count(self.defaults)
        self._layout = Layout(groups, grads, rules, self.state, count_on, before)
        batches = cast("list[Batch]", self._layout.batches(groups, grads, self.state))
        return batches, [cast("Ready", prepare(batch, self.defaults)) for batch in batches]

    def _forget_first(self) -> None:
        """Undo the beginning of states by an update that has not taken place."""
        layout = self._layout
        if layout is not None and layout.forget_begun(self.param_groups, self.state):
            self._layout = None

    def _norm_on_device(
        self, ready: list[Ready], amp_scale: Tensor | None, found_inf: Tensor | None
    ) -> DeviceNorm | None:
        """Return the norm, and what follows from it, where nothing waits for it; or None."""
        if not self._needs_norm:
            return None
        found = norm_on_device(ready, self.max_grad_norm, amp_scale, found_inf, self.skip_nonfinite)
        if found is not None:
            self.grad_norm = found.norm
        return found

    def _gradient_scale(
        self,
        grads: list[Tensor | None],
        ready: Sequence[Ready],
        amp_scale: Tensor | None,
    ) -> Tensor | None:
        """Return what every gradient is to be multiplied by; None for one."""
        scale = None if amp_scale is None else 1.0 / amp_scale
        if not self._needs_norm:
            return scale
        if not ready:
            self.grad_norm = torch.zeros((), device="cpu")
            return scale
        norm = prepared_norm(ready, grads)
        if norm is None:
            norm = global_norm([g for g in grads if g is not None])
        self.grad_norm = norm if scale is None else norm * scale.to(norm.device)
        if self.max_grad_norm is None:
            return scale
        clip = clip_coefficient(self.grad_norm, self.max_grad_norm)
        if clip.is_cpu and not in_dispatch_mode() and bool(clip == 1):
            return scale  # nothing to clip, and on the CPU it costs no wait to know
        return clip if scale is None else clip * scale.to(clip.device)

    @property
    def _needs_norm(self) -> bool:
        return self.max_grad_norm is not None or self.skip_nonfinite

    def _skip_there(self, found_inf: Tensor | None) -> Tensor | None:
        """Return on the device whether to skip: as it is found there, or by the norm."""
        if not self.skip_nonfinite or self.grad_norm is None:
            return found_inf
        wrong = (~torch.isfinite(self.grad_norm)).to(torch.float32)
        return wrong if found_inf is None else torch.maximum(wrong, found_inf.to(wrong.device))

    def _skips(self) -> bool:
        if not self.skip_nonfinite or self.grad_norm is None:
            return False
        skips = not bool(torch.isfinite(self.grad_norm))
        self.skipped_steps += skips
        return skips

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
            found["state"] = {i: self._saved(kept) for i, kept in found["state"].items()}
        return found

    def _saved(self, kept: Any) -> Any:
        """Return what a state dict has of a parameter's state."""
        kept = with_own_count(kept)
        if not isinstance(kept, Mapping):
            return kept
        return gatherable(kept if self.compact_state else with_numbers(kept))

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
