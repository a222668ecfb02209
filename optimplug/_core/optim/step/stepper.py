"""A step of an optimizer: what it gathers, whom it hands it to, and what it counts afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from optimplug._core.internals import in_dispatch_mode, outside_graphs
from optimplug._core.optim.batch import Batch
from optimplug._core.optim.executions.capture import is_capturing, refuse_in_capture
from optimplug._core.optim.executions.choice import (
    DeviceNorm,
    chosen,
    devices_that_count,
    may_be_recorded,
    norm_on_device,
    prepare,
    waits_for_nothing,
)
from optimplug._core.optim.executions.compiled import ReadyCompiled
from optimplug._core.optim.executions.execution import Ready
from optimplug._core.optim.gradients import (
    clip_coefficient,
    global_norm,
    prepared_norm,
    refuse_flattened,
)
from optimplug._core.optim.modes import check_mode
from optimplug._core.optim.refusals import refuse_dense
from optimplug._core.optim.rule import Hyper, Rule
from optimplug._core.optim.step.layout import Layout, WayBack
from optimplug._core.optim.step.recording import Recording
from optimplug._core.optim.step.repeat import Repeat
from optimplug._core.optim.step.totals import totals
from optimplug._core.optim.step.unsettled import Unsettled
from optimplug._core.optim.storage.stored import stored_as_asked

__all__ = ["Stepper"]


class Stepper(torch.optim.Optimizer, ABC):
    """The part of :class:`.Optimizer` that does a step; the other part has groups and states."""

    max_grad_norm: float | None
    skip_nonfinite: bool
    grad_norm: Tensor | None

    _layout: Layout | None = None
    """What the last step has found, as long as it holds."""

    _unsettled: Unsettled | None = None
    """The last step, while it is not known whether the device has skipped it."""

    _recording: Recording | None = None
    """What is for steps that CUDA graphs record; None before the first, and without ``capturable``.
    """

    @staticmethod
    @abstractmethod
    def rule(hyper: Hyper) -> Rule:
        """Return the update rule that a group's hyperparameters ask for."""

    @classmethod
    def stored_rule(cls, hyper: Hyper) -> Rule:
        """Return the same with the storage that the group asks for: what a step runs."""
        return stored_as_asked(cls.rule(hyper), hyper)

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
        recording = self._recording_of(ready)
        if recording is not None:
            self._update_there(recording, batches, ready, grads, scale, found_inf)
            return
        if not (skips or unwatched) and found_inf is not None and layout.must_know_of_skips:
            skips = bool(found_inf)
        if skips:
            self._forget_first()
            return
        way_back = layout.way_back(groups, self.state) if unwatched else None
        changed = self._run(layout, batches, ready, scale, found_inf)
        if way_back is not None:
            norm = self.grad_norm if self.skip_nonfinite else None
            take_back = partial(self._take_back, way_back, changed, norm)
            self._unsettled = Unsettled(cast("Tensor", found_inf), take_back)
        elif found_inf is not None:
            layout.advance(-found_inf)
        elif layout is known and layout.attempts and all(type(r) is ReadyCompiled for r in ready):
            layout.again = Repeat.of(layout, groups, grads, self.state, chosen(self.defaults))
            layout.attempts -= layout.again is None

    def _update_there(
        self,
        recording: Recording,
        batches: list[Batch],
        ready: list[Ready],
        grads: list[Tensor | None],
        scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Do an update that a graph may record: the device decides whether it is left out."""
        layout, done = cast("Layout", self._layout), None
        if found_inf is not None:
            if self.skip_nonfinite and self.grad_norm is not None:
                recording.count(self.grad_norm, found_inf.device)
            if layout.begins and bool(found_inf):
                self._forget_first()
                return
            done = (found_inf == 0).float().reshape(())
        self._run(layout, batches, ready, scale, found_inf, done)
        if is_capturing():
            recording.hold(layout, ready)
        elif layout.begins:
            # What comes after a first update: nothing is laid out while a graph records.
            _, ready = self._prepared(self.param_groups, grads)
            if self._needs_norm:
                norm_on_device(ready, self.max_grad_norm, None, None, self.skip_nonfinite)

    def _run(
        self,
        layout: Layout,
        batches: list[Batch],
        ready: list[Ready],
        scale: Tensor | None,
        found_inf: Tensor | None,
        done: Tensor | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Do the update, and count it; return what changes in the settings of groups.

        What is counted is 1, or, where only the device knows it, ``done``.
        """
        numbers, measured = layout.next_numbers(batches), []
        layout.advance(1 if done is None else done)
        for batch, prepared in zip(batches, ready, strict=True):
            measured.append(prepared.run(scale, found_inf))
            if batch.is_sharded:
                # What worked on the shards has marked those as changed, for autograd.
                torch.autograd.graph.increment_version(batch.owners)
        layout.write(numbers, done)
        groups = self.param_groups
        settings = layout.next_settings(groups, self.state, totals(batches, measured))
        for i, changed in settings.items():
            groups[i].update(changed)
        return settings

    def _take_back(
        self, way_back: WayBack, changed: Mapping[int, Mapping[str, Any]], norm: Tensor | None
    ) -> None:
        """Take back what was counted for a step that the device has skipped.

        It counts as left out where the norm, which ``skip_nonfinite`` looks at, was the reason.
        """
        if way_back(changed):
            self._layout = None
        if norm is not None:
            vars(self)["skipped_steps"] += not bool(torch.isfinite(norm))

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
        recording = self._recording
        there = 0 if recording is None else recording.left_out
        return cast("int", self._own("skipped_steps")) + there

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        if self._recording is not None:
            self._recording.forget_left_out()
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
        records = bool(self.defaults.get("capturable")) and is_capturing()
        if records and not (
            before is not None
            and before.fits(groups, grads, rules, self.state)
            and before.goes_on(grads)
        ):
            refuse_in_capture("parameters, states and settings")
        if before is not None and before.fits(groups, grads, rules, self.state):
            batches = before.batches(groups, grads, self.state)
            if batches is not None:
                ready = self._ready(batches)
                if None not in ready:
                    return batches, cast("list[Ready]", ready)
            if records:
                refuse_in_capture("parameters and states")
            before = None  # some tensor is not what it was
        elif before is not None and not before.holds(groups, rules, self.state):
            before = None
        if self._needs_norm:
            refuse_flattened(self.param_groups)
        refuse_dense(groups, grads, rules)
        count_on = devices_that_count(self.defaults)
        self._layout = Layout(groups, grads, rules, self.state, count_on, before)
        if self._recording is not None:
            self._recording.follow(self._layout)
        batches = cast("list[Batch]", self._layout.batches(groups, grads, self.state))
        return batches, cast("list[Ready]", self._ready(batches))

    def _ready(self, batches: Sequence[Batch]) -> list[Ready | None]:
        return [prepare(batch, self.defaults, self.skip_nonfinite) for batch in batches]

    def _recording_of(self, ready: Sequence[Ready]) -> Recording | None:
        """Return what is for steps that graphs record, where these batches may be."""
        if not (self.defaults.get("capturable") and all(map(may_be_recorded, ready))):
            return None
        if self._recording is None:
            self._recording = Recording()
        return self._recording

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
