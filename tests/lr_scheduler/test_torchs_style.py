"""What is written for torch's schedulers works with ours: subclasses, warnings, states, mixtures."""

import importlib
import inspect
import math
import types
import warnings
from unittest import mock

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import (
    ALL,
    CHAINS,
    PLATEAUS,
    SCALING,
    SEQUENCES,
    SETTING,
    TORCHS,
    Halving,
    advance,
    metric,
    optimizer_of,
    rates,
    run,
    saved,
    trace,
)

import optimplug.optim.lr_scheduler as ours
from optimplug import StateError


def assert_close(found, expected, rtol=1e-12, atol=0.0):
    found, expected = (torch.tensor(rows, dtype=torch.float64) for rows in (found, expected))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def warmup_restarts(module):
    """A class of many projects: a constructor that sets the rates, a step of its own."""

    class CosineAnnealingWarmupRestarts(module.LRScheduler):
        def __init__(self, optimizer, first, mult, high, low, warmup, gamma):
            self.first, self.mult, self.high, self.low = first, mult, high, low
            self.warmup, self.gamma, self.top = warmup, gamma, high
            self.length, self.cycle, self.at = first, 0, -1
            super().__init__(optimizer)
            self.begin()

        def begin(self):
            self.base_lrs = []
            for group in self.optimizer.param_groups:
                group["lr"] = self.low
                self.base_lrs.append(self.low)

        def get_lr(self):
            if self.at == -1:
                return self.base_lrs
            if self.at < self.warmup:
                return [(self.top - b) * self.at / self.warmup + b for b in self.base_lrs]
            u = (self.at - self.warmup) / (self.length - self.warmup)
            return [b + (self.top - b) * (1 + math.cos(math.pi * u)) / 2 for b in self.base_lrs]

        def step(self, epoch=None):
            self.at += 1
            if self.at >= self.length:
                self.cycle, self.at = self.cycle + 1, self.at - self.length
                self.length = (self.length - self.warmup) * self.mult + self.warmup
            self.top = self.high * self.gamma**self.cycle
            self.last_epoch += 1
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr

    return lambda optimizer: CosineAnnealingWarmupRestarts(optimizer, 12, 2, 0.5, 0.01, 3, 0.7)


def steps_of(optimizer, scheduler, steps=60):
    found = [rates(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(rates(optimizer))
    return found


class TestSubclasses:
    def test_a_constructor_that_sets_the_rates_and_a_step_of_ones_own(self):
        found = []
        for module in (ours, torchs):
            optimizer = optimizer_of()
            found.append(steps_of(optimizer, warmup_restarts(module)(optimizer)))
        assert found[0] == found[1]

    def test_one_with_a_step_of_its_own_says_what_the_groups_hold_and_resumes(self):
        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = (warmup_restarts(ours)(o) for o in (optimizer, again))
        steps_of(optimizer, scheduler, 20)
        assert scheduler.get_last_lr() == rates(optimizer)
        other.load_state_dict(saved(scheduler.state_dict()))
        assert steps_of(again, other) == steps_of(optimizer, scheduler)
        assert other.get_last_lr() == rates(again)

    def test_pytorch_optimizers_own(self):
        library = importlib.import_module("pytorch_optimizer.lr_scheduler.cosine_anealing")
        text = inspect.getsource(library)
        assert "from torch.optim.lr_scheduler import" in text
        found = []
        for module in ("torch", "optimplug"):
            names = types.ModuleType(module)
            exec(text.replace("torch.optim.lr", f"{module}.optim.lr"), vars(names))  # noqa: S102
            optimizer = optimizer_of()
            scheduler = names.CosineAnnealingWarmupRestarts(optimizer, 12, 2.0, 0.5, 0.01, 3, 0.7)
            found.append(steps_of(optimizer, scheduler))
        assert found[0] == found[1]

    def test_the_attributes_of_a_subclass_are_its_own_affair(self):
        def build(module, optimizer):
            class Own(module.LRScheduler):
                def __init__(self, optimizer):
                    self.T_0, self.milestones, self.best, self.patience = 2.5, [30, 10], None, -1
                    super().__init__(optimizer)

                def get_lr(self):
                    if self.last_epoch > 1:
                        self.best, self.late = 0.5, ["a", 1]
                    return [base / (1 + self.last_epoch / self.T_0) for base in self.base_lrs]

            return Own(optimizer)

        for module in (ours, torchs):
            optimizer, again = optimizer_of(), optimizer_of()
            scheduler, other = build(module, optimizer), build(module, again)
            steps_of(optimizer, scheduler, 5)
            other.load_state_dict(saved(scheduler.state_dict()))
            assert (other.best, other.late, other.milestones) == (0.5, ["a", 1], [30, 10])
            assert steps_of(again, other)[1:] == steps_of(optimizer, scheduler)[1:]

    def test_a_scheduler_that_a_subclass_holds_goes_on_acting_on_the_same_optimizer(self):
        class Warming(ours.LRScheduler):
            def __init__(self, optimizer, after):
                self.after = after
                super().__init__(optimizer)

            def get_lr(self):
                if self.last_epoch < 3:
                    return [base * self.last_epoch / 3 for base in self.base_lrs]
                return self.after.get_last_lr()

            def step(self, epoch=None):
                if self.last_epoch >= 3:
                    self.after.step()
                super().step(epoch)

        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = (Warming(o, ours.ExponentialLR(o, 0.5)) for o in (optimizer, again))
        steps_of(optimizer, scheduler, 5)
        steps_of(again, other, 5)
        other.load_state_dict(other.state_dict())
        assert other.after.optimizer is again
        assert steps_of(again, other, 4) == steps_of(optimizer, scheduler, 4)

    @pytest.mark.parametrize("step", ["constructor", "later"])
    @pytest.mark.parametrize("name", ["StepLR", "LambdaLR", "CosineAnnealingWarmRestarts"])
    def test_the_constructor_takes_its_step_by_the_method_that_users_call(self, name, step):
        arguments = {"LambdaLR": Halving(3)}.get(name, 7)
        with mock.patch.object(getattr(ours, name), "step") as stepped:
            scheduler = getattr(ours, name)(optimizer_of(), arguments)
            if step == "later":
                scheduler.step()
            assert scheduler.state_dict()["_last_lr"] == [1.0, 0.3]
        assert stepped.call_count == (2 if step == "later" else 1)

    def test_a_plateaus_constructor_takes_none_as_in_torch(self):
        with mock.patch.object(ours.ReduceLROnPlateau, "step") as stepped:
            ours.ReduceLROnPlateau(optimizer_of())
        stepped.assert_not_called()

    @pytest.mark.parametrize("base", ["LRScheduler", "StepLR", "LambdaLR"])
    def test_a_closed_form_of_ones_own_is_where_a_jump_goes(self, base):
        def build(module, optimizer):
            class Own(getattr(module, base)):
                def get_lr(self):
                    return [0.9 * group["lr"] for group in self.optimizer.param_groups]

                def _get_closed_form_lr(self):
                    return [b / (1 + self.last_epoch) for b in self.base_lrs]

            more = {"StepLR": [3], "LambdaLR": [lambda t: 1.0]}.get(base, [])
            return Own(optimizer, *more)

        assert jumps(ours, build) == jumps(torchs, build)

    def test_a_jump_of_one_that_has_no_closed_form_asks_it_for_its_rates(self):
        def build(module, optimizer):
            class Own(module.LambdaLR):
                def get_lr(self):
                    return [b * 0.5 for b in super().get_lr()]

            return Own(optimizer, lambda t: 1 / (1 + t))

        assert jumps(ours, build) == jumps(torchs, build)

    def test_it_is_told_whether_it_is_asked_within_a_step(self):
        told = []

        def build(module, optimizer):
            class Own(module.LRScheduler):
                def get_lr(self):
                    told.append((self._get_lr_called_within_step, self._is_initial))
                    return self.base_lrs

            return Own(optimizer)

        for module in (ours, torchs):
            optimizer = optimizer_of()
            scheduler = build(module, optimizer)
            steps_of(optimizer, scheduler, 2)
            scheduler.get_lr()
        assert told[:4] == told[4:] == [(True, True), (True, False), (True, False), (False, False)]

    def test_a_plateau_may_judge_and_reduce_in_its_own_way(self):
        def build(module, optimizer):
            class Own(module.ReduceLROnPlateau):
                def _is_better(self, a, best):
                    return a < best - 0.2

                def _reduce_lr(self, epoch):
                    self.reduced = [*getattr(self, "reduced", []), epoch]
                    super()._reduce_lr(epoch)

            return Own(optimizer, factor=0.5, patience=1, cooldown=1)

        found = []
        for module in (ours, torchs):
            optimizer = optimizer_of()
            scheduler = build(module, optimizer)
            found.append((trace(optimizer, scheduler, 20), scheduler.reduced, scheduler.mode_worse))
        assert found[0] == found[1]
        assert len(found[0][1]) > 2

    def test_the_place_in_a_cycle_may_be_set_by_hand(self):
        for module in (ours, torchs):
            optimizer = optimizer_of()
            scheduler = module.CosineAnnealingWarmRestarts(optimizer, 4, 2)
            found = []
            for at in (7, 2, 9):
                scheduler.T_cur = at
                optimizer.step()
                scheduler.step()
                found.append((scheduler.T_cur, scheduler.T_i, rates(optimizer)[0]))
            assert [row[:2] for row in found] == [(0, 8), (3, 8), (2, 16)]
            assert found[1][2] == pytest.approx((1 + math.cos(math.pi * 3 / 8)) / 2)


def jumps(module, build):
    optimizer = optimizer_of()
    scheduler = build(module, optimizer)
    advance(optimizer, scheduler, 0)
    found = []
    for epoch in (4, 0, 9):
        with pytest.warns(UserWarning, match="epoch parameter"):
            scheduler.step(epoch)
        found.append(rates(optimizer))
    return found


class TestWarnings:
    """Each in torch's own words, and as often as torch says it."""

    def said(self, module, use):
        optimizer = optimizer_of()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            use(optimizer, module.StepLR(optimizer, 3))
        assert {warning.filename for warning in caught} <= {__file__}
        return [str(warning.message) for warning in caught]

    def override(self, optimizer):
        old = optimizer.step
        optimizer.step = types.MethodType(lambda self, *args: old(*args), optimizer)

    @pytest.mark.parametrize("count", [1, 3])
    def test_of_a_scheduler_that_is_stepped_first(self, count):
        def use(optimizer, scheduler):
            for _ in range(count):
                scheduler.step()
                optimizer.step()

        assert self.said(ours, use) == self.said(torchs, use)
        assert len(self.said(ours, use)) == 1

    @pytest.mark.parametrize("stepped", [False, True])
    def test_of_another_step_of_the_optimizer(self, stepped):
        def use(optimizer, scheduler):
            self.override(optimizer)
            if stepped:
                optimizer.step()
            scheduler.step()

        assert self.said(ours, use) == self.said(torchs, use)
        assert "has been overridden" in self.said(ours, use)[0]

    def test_of_epochs(self):
        def use(optimizer, scheduler):
            optimizer.step()
            scheduler.step(2)

        assert self.said(ours, use) == self.said(torchs, use)
        assert self.said(ours, use) == [torchs.EPOCH_DEPRECATION_WARNING]

    def test_of_rates_that_are_asked_for_outside_of_a_step(self):
        def use(optimizer, scheduler):
            scheduler.get_lr()

        assert "get_last_lr" in self.said(ours, use)[0]
        scheduler, line = ours.StepLR(optimizer_of(), 3), inspect.currentframe().f_lineno + 2
        with pytest.warns(UserWarning, match="get_last_lr") as caught:
            scheduler.get_lr()
        assert caught[0].lineno == line
        with pytest.warns(UserWarning, match="get_last_lr") as caught:
            torchs.StepLR(optimizer_of(), 3).get_lr()
        assert self.said(ours, use) == [str(caught[0].message)]

    @pytest.mark.parametrize("first", [ours, torchs])
    def test_of_nothing_where_all_is_in_order(self, first):
        second = torchs if first is ours else ours

        def use(optimizer, scheduler):
            both = scheduler, second.ConstantLR(optimizer)
            for _ in range(3):
                optimizer.step()
                for each in both:
                    each.step()

        assert self.said(first, use) == []

    def test_of_nothing_where_the_optimizer_was_stepped_before_it_was_built(self):
        def use(optimizer, scheduler):
            optimizer.step()
            ours.ConstantLR(optimizer).step()

        assert self.said(torchs, use) == self.said(ours, use) == []

    def test_of_nothing_where_the_optimizers_own_step_is_put_back(self):
        def use(optimizer, scheduler):
            optimizer.step = type(optimizer).step.__get__(optimizer)  # as accelerate does with AMP
            optimizer.step()
            scheduler.step()

        assert self.said(ours, use) == []


class TestStates:
    @pytest.mark.parametrize("name", {**TORCHS, **PLATEAUS})
    def test_ours_load_into_torchs(self, name):
        source, optimizer = optimizer_of(), optimizer_of()
        scheduler = ALL[name](ours, source)
        trace(source, scheduler, 40)
        theirs = ALL[name](torchs, optimizer)
        theirs.load_state_dict(saved(scheduler.state_dict()))
        for group, other in zip(optimizer.param_groups, source.param_groups, strict=True):
            # As the optimizer's own state does.
            group.update({k: other[k] for k in ("lr", "momentum")})
        found, expected = (
            trace(*each, 30, start=40)[1:] for each in ((optimizer, theirs), (source, scheduler))
        )
        assert_close(found, expected, 1e-11, 1e-14)

    def test_a_milestone_to_come_may_be_a_phase_of_torchs(self):
        def build(module, optimizer):
            warmup = module.LinearLR(optimizer, 0.1, 1.0, 5)
            return module.SequentialLR(
                optimizer, [warmup, module.MultiStepLR(optimizer, [2, 4])], [5]
            )

        source, optimizer = optimizer_of(), optimizer_of()
        scheduler, theirs = build(ours, source), build(torchs, optimizer)
        trace(source, scheduler, 2), trace(optimizer, theirs, 2)
        theirs.load_state_dict(saved(scheduler.state_dict()))
        assert_close(trace(optimizer, theirs, 20), trace(source, scheduler, 20))

    def test_the_last_rate_in_a_state_is_what_this_scheduler_has_set(self):
        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = ours.StepLR(optimizer, 1, 0.5), ours.StepLR(again, 1, 0.5)
        steps_of(optimizer, scheduler, 1)
        optimizer.param_groups[0]["lr"] = 7.0
        state = saved(scheduler.state_dict())
        assert state["_last_lr"] == scheduler.get_last_lr() == [0.5, 0.15]
        other.load_state_dict(state)
        assert other.get_last_lr() == [0.5, 0.15]
        assert rates(again) == [7.0, 0.15]

    @pytest.mark.parametrize("name", ["linear", "cyclic", "sequence of three", "plateau"])
    def test_a_state_of_an_earlier_release_loads(self, name):
        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = ALL[name](ours, optimizer), ALL[name](ours, again)
        trace(optimizer, scheduler, 12)
        state = without(scheduler.state_dict(), "_held_lr")
        other.load_state_dict(state)
        assert trace(again, other, 20, start=12) == trace(optimizer, scheduler, 20, start=12)

    def test_milestones_of_an_earlier_release_load(self):
        scheduler = ours.MultiStepLR(optimizer_of(), [3, 3, 9])
        state = {**scheduler.state_dict(), "milestones": [3, 3, 9]}
        other = ours.MultiStepLR(optimizer_of(), [1])
        other.load_state_dict(state)
        assert other.milestones == {3: 2, 9: 1}

    def test_a_loaded_scheduler_has_all_that_the_saved_one_has(self):
        for build, other in (
            (lambda o: ours.StepLR(o, 3), lambda o: ours.StepLR(o, 1, 0.9)),
            (lambda o: ours.CosineAnnealingLR(o, 9, 0.1), lambda o: ours.CosineAnnealingLR(o, 5)),
            (lambda o: ours.LambdaLR(o, abs), lambda o: ours.LambdaLR(o, abs)),
            (lambda o: ours.MultiStepLR(o, [3, 4]), lambda o: ours.MultiStepLR(o, [7])),
        ):
            optimizer = optimizer_of()
            scheduler = build(optimizer)
            steps_of(optimizer, scheduler, 10)
            loaded = other(optimizer)
            loaded.load_state_dict(scheduler.state_dict())
            assert vars(loaded) == vars(scheduler)

    def test_what_torch_saved_of_one_cycle_before_it_named_the_way(self):
        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = (ours.OneCycleLR(o, 1.0, 30) for o in (optimizer, again))
        trace(optimizer, scheduler, 7)
        state = without(scheduler.state_dict(), "_anneal_func_type")
        del other._anneal_func_type
        other.load_state_dict({**state, "anneal_func": torchs.OneCycleLR._annealing_cos})
        assert trace(again, other, 20) == trace(optimizer, scheduler, 20)

    @pytest.mark.parametrize("name", ["cyclic, two", "one cycle, two"])
    def test_the_bounds_of_momentum_are_in_the_groups(self, name):
        found = []
        for module in (ours, torchs):
            optimizer = optimizer_of()
            ALL[name](module, optimizer)
            keys = "base_momentum", "max_momentum"
            found.append([[group[key] for key in keys] for group in optimizer.param_groups])
        assert found[0] == found[1]

    def test_the_function_of_a_cycle_has_torchs_name(self):
        for mode, x in (("triangular", 3), ("triangular2", 3), ("exp_range", 3)):
            found, expected = (
                m.CyclicLR(optimizer_of(), 0.1, 1.0, mode=mode, gamma=0.9)._scale_fn_ref(x)
                for m in (ours, torchs)
            )
            assert found == pytest.approx(expected, rel=1e-15)
        scheduler = ours.CyclicLR(optimizer_of(), 0.1, 1.0)
        assert isinstance(scheduler._scale_fn_ref, types.FunctionType)
        assert "_scale_fn_ref" not in scheduler.state_dict()


def without(state, key):
    """A state as it was before it had this key."""
    state = {k: v for k, v in state.items() if k != key}
    if "_schedulers" in state:
        state["_schedulers"] = [without(child, key) for child in state["_schedulers"]]
    return state


class TestTorchsInsideOurs:
    """Our composites take torch's schedulers, alone and beside ours."""

    LEAVES = {**SCALING, **SETTING}

    @pytest.mark.parametrize("name", [n for n in LEAVES if n != "polynomial, never"])
    @pytest.mark.parametrize("last", [False, True])
    def test_a_phase(self, name, last):
        def build(composite, inner, warming):
            def both(module, optimizer):
                warmup = warming.LinearLR(optimizer, 0.1, 1.0, 7)
                phase = self.LEAVES[name](inner, optimizer)
                phases = [warmup, phase] if last else [phase, warmup]
                return composite.SequentialLR(optimizer, phases, [9])

            return both

        # As a later phase a product of torch's goes on from the phase before it; ours begins anew.
        whole = ours if "multiplicative" in name else torchs
        found = run(ours, build(ours, torchs, ours), 100)
        # The smallest rates of a cosine that goes from step to step are rounding errors.
        assert_close(found, run(whole, build(whole, whole, whole), 100), 1e-9, 1e-13)

    @pytest.mark.parametrize("name", [n for n in LEAVES if n != "polynomial, never"])
    def test_a_link_of_a_chain(self, name):
        def build(composite, inner, other):
            return lambda m, o: composite.ChainedScheduler(
                [other.ExponentialLR(o, 0.95), self.LEAVES[name](inner, o)]
            )

        found = run(ours, build(ours, torchs, ours), 60)
        expected = run(torchs, build(torchs, torchs, torchs), 60)
        late = "cyclic" in name  # in torch the first step is not yet its own
        assert_close(found[late:], expected[late:], 1e-9, 1e-13)

    @pytest.mark.parametrize("name", {**SEQUENCES, **CHAINS})
    def test_all_of_them_as_torchs_own_composites(self, name):
        def build(module, optimizer):
            mixed = types.SimpleNamespace(**vars(torchs))
            mixed.SequentialLR, mixed.ChainedScheduler = ours.SequentialLR, ours.ChainedScheduler
            return ALL[name](mixed, optimizer)

        assert_close(run(ours, build, 100), run(torchs, ALL[name], 100), 1e-11, 1e-14)

    @pytest.mark.parametrize("name", ["sequence", "chain of three"])
    def test_torchs_composites_are_phases_too(self, name):
        def build(inner):
            return lambda m, o: ours.SequentialLR(
                o, [ours.ConstantLR(o, 0.5, 9), ALL[name](inner, o)], [4]
            )

        assert_close(run(ours, build(torchs), 60), run(ours, build(ours), 60), 1e-11, 1e-14)

    def test_a_plateau_of_torchs_gets_its_metric(self):
        def build(inner):
            return lambda m, o: ours.SequentialLR(
                o, [ours.LinearLR(o, 0.1, 1.0, 5), PLATEAUS["plateau"](inner, o)], [5]
            )

        found = []
        for inner in (torchs, ours):
            optimizer = optimizer_of()
            scheduler = build(inner)(ours, optimizer)
            scheduler._schedulers[1].step(-9.0)  # what it has seen before it begins
            found.append([])
            for t in range(60):
                optimizer.step()
                scheduler.step(metric(t))
                found[-1].append(rates(optimizer))
        assert found[0] == found[1]
        assert found[0][-1][0] < 0.5

    @pytest.mark.parametrize("stop", [3, 20])
    def test_a_run_with_them_resumes(self, stop):
        def build(optimizer):
            phases = [
                torchs.LinearLR(optimizer, 0.1, 1.0, 7),
                torchs.MultiStepLR(optimizer, [2, 30]),
            ]
            chained = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.99), phases[1]])
            return ours.SequentialLR(optimizer, [phases[0], chained], [9])

        optimizer, again = optimizer_of(), optimizer_of()
        scheduler, other = build(optimizer), build(again)
        trace(optimizer, scheduler, stop)
        other.load_state_dict(saved(scheduler.state_dict()))
        assert trace(again, other, 40) == trace(optimizer, scheduler, 40)

    @pytest.mark.parametrize("name", ["cosine", "sequence of the seed", "chain of the seed"])
    def test_a_jump_is_the_whole_way(self, name):
        def build(inner, optimizer):
            phases = [ours.ConstantLR(optimizer, 0.5), ALL[name](inner, optimizer)]
            return ours.SequentialLR(optimizer, phases, [5])

        found = []
        for inner in (torchs, ours):
            optimizer = optimizer_of()
            scheduler = build(inner, optimizer)
            optimizer.step()
            for epoch in (12, 3, 5, 9):
                with pytest.warns(UserWarning, match="epoch parameter"):
                    scheduler.step(epoch=epoch)
                found.append(rates(optimizer))
                scheduler.step()
                found.append(rates(optimizer))
        assert_close(found[:8], found[8:])

    def test_a_state_of_another_class_is_refused(self):
        optimizer = optimizer_of()
        scheduler = ours.ChainedScheduler([torchs.StepLR(optimizer, 3)])
        other = ours.ChainedScheduler([torchs.ExponentialLR(optimizer, 0.5)])
        before = scheduler.state_dict()
        with pytest.raises(StateError, match=r"not of a StepLR: missing \['step_size'\]"):
            scheduler.load_state_dict(other.state_dict())
        assert scheduler.state_dict() == before

    def test_there_is_no_closed_form_of_one(self):
        optimizer = optimizer_of()
        scheduler = ours.SequentialLR(optimizer, [torchs.StepLR(optimizer, 3)], [])
        with pytest.raises(NotImplementedError, match="StepLR has no closed form here"):
            scheduler.closed_form(1.0, 3)
