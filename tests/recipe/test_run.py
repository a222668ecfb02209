"""A recipe at work: all of an update, what is told it, its state, and its end."""

import copy
import io
import pickle

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from support.averaged import Averaged
from support.tensors import same_weights
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from optimplug import ArgumentError, Horizon, Recipe, RecipeError, Run, StateError
from optimplug.recipe import RecipeScheduler, build_scheduler
from optimplug.recipe.schedule.scheduled import ScheduledOptimizer

UPDATES = 8
HORIZON = Horizon(total_steps=UPDATES, steps_per_epoch=4)
WARM_UP = {"name": "LinearLR", "start_factor": 0.1, "for": 3}
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_loss", "patience": 0, "factor": 0.5}
LINEAR = {"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": "linear"}
RECIPE = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "max_grad_norm": 1.0},
    "groups": [
        {"match": "0.*", "freeze": {"until": 3}},
        {"match": "1.bias", "freeze": True},
        {"match": "*weight", "weight_decay": 0.1},
        {"match": "1.weight", "schedule": {"name": "CosineAnnealingLR", "of": "weight_decay"}},
    ],
    "schedule": [WARM_UP, PLATEAU],
}
TORCHS = {**RECIPE, "optimizer": {"name": "torch.optim.AdamW", "lr": 0.1}}
MODES = {"optimizer": {"name": "support.averaged.Averaged"}, "schedule": [WARM_UP, PLATEAU]}
ADAMW = {"name": "AdamW", "lr": 0.1}
FREE = {
    "optimizer": {"name": "ScheduleFreeAdamW", "lr": 0.1, "warmup_steps": 3, "max_grad_norm": 1.0},
    "groups": [{"match": "0.*", "freeze": {"until": 3}}, {"layer_decay": 0.5}, RECIPE["groups"][1]],
}
SEVERAL = {**RECIPE, "groups": [*RECIPE["groups"], {"match": "0.*", "optimizer": "Lion"}]}
SOME_FREE = {**FREE, "groups": [*FREE["groups"], {"match": "1.*", "optimizer": ADAMW}]}
RECIPES = {
    "ours": RECIPE,
    "torch's": TORCHS,
    "several": SEVERAL,
    "two modes": MODES,
    "schedule-free": FREE,
    "some schedule-free": SOME_FREE,
}
LOSSES = [5.0, 4.0, 6.0, 7.0, 3.0, 3.0, 8.0, 1.0]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def started(recipe=RECIPE):
    return Recipe.load(recipe).start(build(), HORIZON)


def backward(run, t):
    run.model(torch.full((2, 3), float(t + 1))).square().sum().backward()


def update(run, t):
    backward(run, t)
    run.step()
    run.eval()
    run.validated({"eval_loss": LOSSES[t]})
    run.train()


def what_is(run):
    weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return {"weights": weights, **copy.deepcopy(run.state_dict())}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class TestSteps:
    def test_a_run_does_what_build_and_a_loop_do(self):
        run, model = started(), build()
        optimizer, scheduler = Recipe.load(RECIPE).build(model, HORIZON)
        for t in range(UPDATES):
            update(run, t)
            model(torch.full((2, 3), float(t + 1))).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            scheduler.step_metric({"eval_loss": LOSSES[t]})
        by_hand = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        assert same(what_is(run), {"weights": dict(model.named_parameters()), **by_hand})
        assert len(set(scheduler.get_last_lr())) == 1
        assert run.optimizer.grad_norm is not None  # it clips

    def test_torch_takes_its_parts_for_its_own(self):
        run = started()
        assert isinstance(run, Run)
        assert isinstance(run.optimizer, torch.optim.Optimizer)
        assert isinstance(run.scheduler, torch.optim.lr_scheduler.LRScheduler)

    def test_gradients_are_cleared(self):
        run = started()
        update(run, 0)
        assert all(p.grad is None for g in run.optimizer.param_groups for p in g["params"])

    @pytest.mark.parametrize("name", ["AdamW", "torch.optim.AdamW"])
    def test_a_closure_computes_the_loss_within_the_step(self, name):
        recipe = {**RECIPE, "optimizer": {"name": name, "lr": 0.1}}
        run, other = started(recipe), started(recipe)
        for t in range(UPDATES):

            def closure(t=t):
                run.optimizer.zero_grad()
                loss = run.model(torch.full((2, 3), float(t + 1))).square().sum()
                loss.backward()
                return loss

            loss = run.step(closure)
            backward(other, t)
            assert other.step() is None
            assert loss.requires_grad
            assert same(what_is(run), what_is(other)), t

    def test_a_batch_whose_gradients_are_accumulated_is_no_update(self):
        run, rates = started(LINEAR), []
        for t in range(6):
            backward(run, t)
            if t % 3 == 2:
                run.optimizer.step()
            rates.append((run.updated(), run.scheduler.get_last_lr()[0]))
        once, twice = 1 - 1 / UPDATES, 1 - 2 / UPDATES
        no, first, second = (False, 1.0), (True, once), (True, twice)
        assert rates == [no, no, first, (False, once), (False, once), second]

    @pytest.mark.parametrize("settings", [{}, {"fused": True}, {"foreach": False}])
    @pytest.mark.parametrize("skipped", [{0}, {1, 2}, {5}])
    def test_an_update_that_amp_skips_is_none(self, settings, skipped):
        recipe = {"optimizer": {"name": "AdamW", **settings}, "schedule": "linear"}
        run, scaler = started(recipe), torch.amp.GradScaler("cpu", init_scale=4.0)
        for t in range(6):
            loss = run.model(torch.full((2, 3), float(t + 1))).square().sum()
            scaler.scale(loss * (torch.inf if t in skipped else 1)).backward()
            scaler.step(run.optimizer)
            scaler.update()
            assert run.updated() is (t not in skipped)
            run.optimizer.zero_grad()
        assert run.scheduler.last_epoch == 6 - len(skipped)

    def test_the_schedule_moves_by_as_many_updates_as_there_were(self):
        run = started(LINEAR)
        for new in (2, 0, 1, 3):
            for _ in range(new):
                run.optimizer.step()
            assert run.updated() is (new > 0)
        assert run.scheduler.last_epoch == 6
        run.optimizer.step()  # and nobody says so
        run.step()
        assert run.scheduler.last_epoch == 8

    def test_a_step_that_calls_its_base_class_is_one_update(self):
        run, heard = started(MODES), []
        run.optimizer.register_step_post_hook(lambda *_: heard.append(1))
        run.optimizer.step()
        assert heard == [1, 1]
        assert run.updates.take() == 1
        run.optimizer.step()
        run.updated()
        assert run.scheduler.last_epoch == 1

    def test_a_step_that_raised_is_no_update_and_hides_no_later_one(self):
        run = started(LINEAR)
        with pytest.raises(ZeroDivisionError):
            run.step(lambda: 1 / 0)
        assert not run.updated()
        run.optimizer.step()
        assert run.updated()
        assert run.scheduler.last_epoch == 1

    def test_a_step_for_the_state_alone_is_none(self):
        run = started(RECIPE)
        state = get_optimizer_state_dict(run.model, run.optimizer)
        assert state["state"]
        assert not run.updated()
        update(run, 0)
        assert run.scheduler.last_epoch == 1

    @pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
    def test_a_rate_of_0_alone_makes_no_step_one_for_the_state(self, rate):
        run = started({"optimizer": {"name": "torch.optim.SGD", "lr": 1.0}, "schedule": "linear"})
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        backward(run, 0)
        run.optimizer.step()
        assert run.updates.take() == 1
        for p in run.model.parameters():
            p.grad.zero_()
        run.optimizer.step()
        assert run.updates.take() == 0

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_a_warmup_from_0_begins_with_an_update_whatever_the_gradients_are(self, device):
        model = nn.Embedding(5, 3, sparse=device == "cpu", device=device)
        recipe = {
            "optimizer": {"name": "torch.optim.SGD", "lr": 1.0},
            "schedule": {"preset": "linear", "warmup": 2},
        }
        run = Recipe.load(recipe).start(model, HORIZON)
        for _ in range(3):
            model(torch.tensor([1, 3], device=device)).sum().backward()
            run.step()
        assert run.scheduler.last_epoch == 3

    def test_updates_can_be_counted_where_another_steps_the_schedule(self):
        run = started(LINEAR)
        run.optimizer.step()
        run.optimizer.step()
        assert run.updates.take() == 2
        assert not run.updated()
        assert run.scheduler.last_epoch == 0

    def test_without_a_schedule_nothing_moves(self):
        run = Run(Recipe.load(RECIPE), build())
        before = copy.deepcopy(dict(run.model.named_parameters()))
        backward(run, 0)
        with pytest.raises(ArgumentError, match=r"call run\.schedule_over\(horizon\)"):
            run.step()
        assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
        assert not run.optimizer.state


class TestValidations:
    def test_a_plateau_falls_at_once(self):
        run = started({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": [PLATEAU]})
        rates = []
        for loss in (1.0, 2.0, 3.0):
            run.validated({"eval_loss": loss, "other": "x"})
            rates += run.scheduler.get_last_lr()
        assert rates == [1.0, 0.5, 0.25]

    def test_a_missing_metric_changes_nothing(self):
        run = started({"optimizer": {"name": "SGD", "lr": 1.0}, "schedule": [PLATEAU]})
        before = what_is(run)
        with pytest.raises(ArgumentError, match="'eval_loss' is missing; there are: lost"):
            run.validated({"lost": 1.0})
        assert same(before, what_is(run))


class TestModes:
    def test_a_run_begins_to_train_and_the_optimizer_follows(self):
        run = started(MODES)
        assert run.has_modes
        assert run.training
        seen = [run.optimizer.param_groups[0]["train_mode"]]
        for switch in (run.eval, run.eval, run.train):
            switch()
            seen.append((run.training, run.optimizer.param_groups[0]["train_mode"]))
        assert seen == [True, (False, False), (False, False), (True, True)]

    def test_the_weights_that_are_validated_are_others(self):
        run = started(MODES)
        for t in range(3):
            update(run, t)
        trained = copy.deepcopy(run.model)
        run.eval()
        assert not same_weights(run.model, trained)
        run.train()
        assert same_weights(run.model, trained)

    @pytest.mark.parametrize("name", ["two modes", "ours", "schedule-free"])
    @pytest.mark.parametrize("evaluated", [False, True])
    def test_the_mode_is_that_in_which_a_state_was_saved(self, name, evaluated):
        whole, run = started(RECIPES[name]), started(RECIPES[name])
        for t in range(4):
            update(whole, t)
        if evaluated:
            whole.eval()
        run.model.load_state_dict(whole.model.state_dict())
        run.load_state_dict(through_file(whole.state_dict()))
        assert run.training is not evaluated
        whole.train()
        run.train()
        assert run.training
        assert same(what_is(run), what_is(whole))

    @pytest.mark.parametrize("evaluated", [False, True])
    def test_the_state_of_an_optimizer_alone_may_tell_too(self, evaluated):
        whole, run = started(MODES), started(MODES)
        update(whole, 0)
        if evaluated:
            whole.eval()
        run.load_state_dict(whole.optimizer.state_dict())
        assert run.training is not evaluated

    def test_where_a_state_tells_nothing_the_last_call_counts(self):
        run = started()
        run.eval()
        run.load_state_dict(run.optimizer.state_dict())
        assert not run.training

    def test_other_optimizers_have_none(self):
        run = started()
        before = what_is(run)
        run.eval()
        run.train()
        assert not run.has_modes
        assert same(before, what_is(run))


class Wrapper(AcceleratedOptimizer):
    """As accelerate's: no hooks of its own, and it may leave out a step."""

    def __init__(self, optimizer):  # without an Accelerator
        self.optimizer, self.stepping = optimizer, True

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    state_dict = property(lambda self: self.optimizer.state_dict)
    load_state_dict = property(lambda self: self.optimizer.load_state_dict)

    def step(self, closure=None):
        return self.optimizer.step(closure) if self.stepping else None

    def zero_grad(self):
        if self.stepping:
            self.optimizer.zero_grad()


class TestTwoPhases:
    def test_make_the_same_run_as_one(self):
        one, run = started(), Run(Recipe.load(RECIPE), build())
        assert run.horizon is None
        for ask in (lambda: run.scheduler, run.updated, run.state_dict):
            with pytest.raises(ArgumentError, match=r"call run.schedule_over\(horizon\)"):
                ask()
        assert run.schedule_over(HORIZON) is run.scheduler
        assert run.horizon == HORIZON
        for t in range(UPDATES):
            update(one, t)
            update(run, t)
        assert same(what_is(one), what_is(run))

    def test_a_wrapper_is_stepped_in_the_optimizers_place(self):
        one, run = started(), Run(Recipe.load(RECIPE), build())
        wrapper = Wrapper(run.optimizer)
        run.schedule_over(HORIZON, wrapper)
        assert run.optimizer is wrapper
        for t in range(UPDATES):
            wrapper.stepping = False
            run.model(torch.full((2, 3), torch.nan))
            run.step()
            wrapper.stepping = True
            update(one, t)
            update(run, t)
        assert same(what_is(one), what_is(run))
        resumed = Run(Recipe.load(RECIPE), build())
        resumed.schedule_over(HORIZON, Wrapper(resumed.optimizer))
        resumed.load_state_dict(through_file(run.state_dict()))
        assert same(resumed.state_dict(), run.state_dict())
        before = what_is(resumed)
        with pytest.raises(StateError):
            resumed.load_state_dict({**run.state_dict(), "optimizer": 3})
        assert same(before, what_is(resumed))

    def test_another_horizon_begins_anew(self):
        run, fresh = started(LINEAR), started(LINEAR)
        for t in range(5):
            update(run, t)
        longer = Horizon(total_steps=20)
        run.schedule_over(longer)
        rates = []
        for _ in range(3):
            rates += run.scheduler.get_last_lr()
            run.step()
        backward(fresh, 0)
        assert rates == pytest.approx([1 - t / 20 for t in range(3)], rel=1e-12)
        assert run.horizon == longer
        hooks = [len(r.optimizer._optimizer_step_post_hooks) for r in (run, fresh)]
        assert hooks[0] <= hooks[1]

    @pytest.mark.parametrize("phase", [1, 2])
    def test_a_horizon_that_does_not_fit_changes_nothing(self, phase):
        model, short = build(), Horizon(total_steps=2)
        if phase == 1:
            with pytest.raises(RecipeError, match="longer than the run"):
                Recipe.load(RECIPE).start(model, short)
            assert all(p.requires_grad for p in model.parameters())
            return
        run = Recipe.load(RECIPE).start(model, HORIZON)
        before, scheduler = what_is(run), run.scheduler
        with pytest.raises(RecipeError, match="longer than the run"):
            run.schedule_over(short)
        assert run.scheduler is scheduler
        assert run.horizon == HORIZON
        assert same(before, what_is(run))

    def test_all_that_is_wrong_is_said_at_once(self):
        recipe = {**RECIPE, "groups": [{"match": "none.*", "lr": 1}]}
        with pytest.raises(RecipeError) as error:
            Recipe.load(recipe).start(build(), Horizon(total_steps=2))
        assert [problem.path for problem in error.value.problems] == [
            "groups[0].match",
            "schedule[0].for",
        ]

    def test_another_optimizer_is_refused(self):
        run = started()
        before = what_is(run)
        stranger = torch.optim.SGD(run.model.parameters(), lr=0.1)
        with pytest.raises(ArgumentError, match="must be the run's own"):
            run.schedule_over(HORIZON, stranger)
        with pytest.raises(TypeError, match="is not an Optimizer"):
            run.schedule_over(HORIZON, object())
        assert same(before, what_is(run))

    @pytest.mark.parametrize("given", [10, {"total_steps": 10}])
    @pytest.mark.parametrize("use", ["start", "build", "plan"])
    def test_a_horizon_must_be_one(self, use, given):
        with pytest.raises(ArgumentError, match=r"^horizon must be a Horizon, Horizon\(total.*$"):
            getattr(Recipe.load(RECIPE), use)(build(), given)

    @pytest.mark.parametrize("use", ["start", "build", "plan"])
    def test_a_model_must_be_one(self, use):
        with pytest.raises(ArgumentError, match=r"^model must be a torch.nn.Module .got 'm'.$"):
            getattr(Recipe.load(RECIPE), use)("m", HORIZON)

    @pytest.mark.parametrize("given", [True, 0, 1.5])
    def test_a_horizon_counts_updates(self, given):
        with pytest.raises(ArgumentError, match=r"total_steps must be an int >= 1 or None"):
            Horizon(total_steps=given)


class TestState:
    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("stop", range(UPDATES + 1))
    def test_a_resumed_run_equals_the_uninterrupted_one(self, recipe, stop):
        whole, resumed = started(RECIPES[recipe]), started(RECIPES[recipe])
        for t in range(stop):
            update(whole, t)
        resumed.model.load_state_dict(copy.deepcopy(whole.model.state_dict()))
        resumed.load_state_dict(through_file(whole.state_dict()))
        for t in range(stop, UPDATES):
            update(whole, t)
            update(resumed, t)
        assert same(what_is(whole), what_is(resumed))

    def test_one_that_was_saved_to_be_validated_goes_on_to_train(self):
        whole, resumed = started(MODES), started(MODES)
        for t in range(3):
            update(whole, t)
        whole.eval()
        saved = through_file({"model": whole.model.state_dict(), "run": whole.state_dict()})
        resumed.model.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["run"])
        for run in (whole, resumed):
            run.train()
            update(run, 3)
        assert same(what_is(whole), what_is(resumed))

    def test_the_argument_stays_as_it_is(self):
        whole, resumed = started(), started()
        update(whole, 0)
        state = through_file(whole.state_dict())
        kept = copy.deepcopy(state)
        resumed.load_state_dict(state)
        assert same(state, kept)

    def test_updates_before_it_are_none_after_it(self):
        run = started(LINEAR)
        state = through_file(run.state_dict())
        backward(run, 0)
        run.optimizer.step()
        run.load_state_dict(state)
        assert not run.updated()

    @pytest.mark.parametrize("recipe", ["ours", "torch's"])
    def test_of_an_optimizer_alone_the_schedule_stays_where_it_is(self, recipe):
        whole, run = started(RECIPES[recipe]), started(RECIPES[recipe])
        for t in range(6):
            update(whole, t)
        for t in range(2):
            update(run, t)
        before = through_file(run.state_dict())
        run.load_state_dict(through_file(whole.optimizer.state_dict()))
        after = run.state_dict()
        assert same(after["scheduler"], before["scheduler"])
        assert same(after["optimizer"]["state"], whole.state_dict()["optimizer"]["state"])
        for ours, own in zip(
            after["optimizer"]["param_groups"], before["optimizer"]["param_groups"], strict=True
        ):
            assert same(ours, own)

    BAD = {
        "nothing": ({}, r"that of a run, .* \(got the keys none\)"),
        "no mapping": ([], r"\(got list\)"),
        "half of it": ({"optimizer": {}}, r"got the keys 'optimizer'\)"),
        "an empty optimizer": (lambda s: {**s, "optimizer": {}}, "'state'|does not fit"),
        "no optimizer": (lambda s: {**s, "optimizer": 3}, "optimizer in .* must be a dict"),
        "half of a run": (lambda s: {**s, "scheduler": None}, "scheduler in .* must be a dict"),
        "no groups": (
            lambda s: {**s, "optimizer": {**s["optimizer"], "param_groups": []}},
            "must hold a group, but it is empty",
        ),
        "bad moments": (
            lambda s: {**s, "optimizer": {**s["optimizer"], "state": 3}},
            "does not|must be a dict",
        ),
        "no mode": (lambda s: {**s, "training": "yes"}, "training must be true or false"),
        "no schedule": (lambda s: {**s, "scheduler": 3}, "must be a dict"),
        "another schedule": (
            lambda s: {**s, "scheduler": {**s["scheduler"], "fingerprint": "x"}},
            r"schedule +x +.* adapt",
        ),
        **{
            key: (lambda s, k=key, v=value: {**s, "scheduler": {**s["scheduler"], k: v}}, key)
            for key, value in {
                "last_epoch": -5,
                "_step_count": 0.5,
                "base_lrs": [0.1],
                "_last_lr": ["x"],
                "_remembered": [],
                "_initial": {"weight_decay": [0.1]},
            }.items()
        },
    }
    MESSAGES = {"base_lrs": "groups", "_last_lr": "_last_lr"}

    @pytest.mark.parametrize("recipe", ["ours", "torch's"])
    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_one_changes_nothing(self, recipe, name):
        bad, message = self.BAD[name]
        whole, run = started(RECIPES[recipe]), started(RECIPES[recipe])
        for t in range(4):
            update(whole, t)
        update(run, 0)
        before, uninterrupted = what_is(run), started(RECIPES[recipe])
        update(uninterrupted, 0)
        with pytest.raises(StateError, match=self.MESSAGES.get(name, message)):
            run.load_state_dict(bad(whole.state_dict()) if callable(bad) else bad)
        assert same(before, what_is(run))
        for t in range(1, 4):
            update(run, t)
            update(uninterrupted, t)
        assert same(what_is(run), what_is(uninterrupted))

    def test_what_fails_late_is_undone_too(self, monkeypatch):
        whole, run = started(), started()
        update(whole, 0)
        before = what_is(run)

        def fail(self, state_dict):
            raise ZeroDivisionError("late")

        monkeypatch.setattr(RecipeScheduler, "load_state_dict", fail)
        with pytest.raises(StateError, match="does not fit AdamW: ZeroDivisionError: late"):
            run.load_state_dict(whole.state_dict())
        assert same(before, what_is(run))


def footprint(owner):
    """Return the attributes of one object, and how many hooks are in each place for them."""
    hooks = {k: len(v) for k, v in vars(owner).items() if k.endswith("_hooks") and v is not None}
    return set(vars(owner)), hooks


class TestClose:
    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("updates", [0, 1, 4])
    def test_nothing_of_the_run_is_left(self, name, updates):
        untouched, model = build(), build()
        bare = Recipe.load(RECIPES[name]).build_optimizer(untouched)
        for p in untouched.parameters():
            p.requires_grad_(True)
        with Recipe.load(RECIPES[name]).start(model, HORIZON) as run:
            for t in range(updates):
                update(run, t)
            frozen = [not p.requires_grad for p in model.parameters()]
            assert any(frozen) is ("groups" in RECIPES[name])
        assert run.closed
        for mine, other in zip(
            [model, *model.modules(), run.optimizer],
            [untouched, *untouched.modules(), bare],
            strict=True,
        ):
            assert footprint(mine) == footprint(other)
        assert [p.requires_grad for p in model.parameters()] == [True] * 4

    def test_two_phases_leave_nothing_either(self):
        model = build()
        run = Run(Recipe.load(RECIPE), model)
        bare = footprint(Recipe.load(LINEAR).build_optimizer(build()))
        run.schedule_over(HORIZON)
        run.schedule_over(Horizon(total_steps=20))
        update(run, 0)
        run.close()
        assert footprint(run.optimizer) == bare
        assert all(p.requires_grad for p in model.parameters())

    def test_what_others_have_put_there_stays(self):
        run, heard = started(), []
        run.optimizer.register_step_post_hook(lambda *_: heard.append(1))
        run.close()
        run.optimizer.step()
        assert heard == [1]

    def test_what_was_frozen_before_stays_frozen(self):
        model = build()
        model[0].bias.requires_grad_(False)
        Recipe.load(RECIPE).start(model, HORIZON).close()
        assert not model[0].bias.requires_grad
        assert model[1].bias.requires_grad

    def test_it_is_undone_in_reverse_order_and_once(self):
        run, undone = started(), []
        for i in range(3):
            run.on_close(lambda i=i: undone.append(i))
        run.close()
        run.close()
        assert undone == [2, 1, 0]

    def test_one_that_fails_keeps_no_other_from_it(self):
        run, undone = started(), []
        run.on_close(lambda: undone.append(0))
        run.on_close(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.close()
        assert undone == [0]
        assert run.model[1].bias.requires_grad

    def test_an_error_within_closes_as_well(self):
        model = build()
        with pytest.raises(ZeroDivisionError), Recipe.load(RECIPE).start(model, HORIZON):
            raise ZeroDivisionError
        assert all(p.requires_grad for p in model.parameters())

    def test_a_closed_run_says_so_and_still_has_its_state(self):
        run = started()
        update(run, 0)
        before = what_is(run)
        run.close()
        for ask in (run.step, run.updated, lambda: run.validated({"eval_loss": 1.0})):
            with pytest.raises(ArgumentError, match=r"is closed .* recipe.start\(model, horizon\)"):
                ask()
        assert same(before, what_is(run))
        other = started()
        other.load_state_dict(through_file(run.state_dict()))
        assert same(other.state_dict(), run.state_dict())

    def test_another_run_of_the_same_model_begins_anew(self):
        first = started()
        for t in range(UPDATES):
            update(first, t)
        first.close()
        model = first.model
        model.load_state_dict(build().state_dict())
        second, fresh = Recipe.load(RECIPE).start(model, HORIZON), started()
        for t in range(UPDATES):
            update(second, t)
            update(fresh, t)
        assert same(what_is(second), what_is(fresh))

    def test_nothing_is_put_in_place_any_more(self):
        run = started()
        run.close()
        for attempt in (lambda: run.schedule_over(HORIZON), lambda: run.on_close(print)):
            with pytest.raises(ArgumentError, match="the run is closed"):
                attempt()
        assert not run.optimizer._optimizer_step_pre_hooks

    @pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
    def test_a_copy_would_hear_of_nothing_and_is_refused(self, how):
        with pytest.raises(TypeError, match=r"a Run cannot be copied.* save its state_dict\(\)"):
            how(started())


class TestScheduleAlone:
    """The same without a recipe, for an optimizer of one's own."""

    def test_it_moves_on_together_and_leaves_no_trace(self):
        weights = [nn.Parameter(torch.ones(2))]
        optimizer, bare = (torch.optim.SGD(weights, lr=1.0) for _ in range(2))
        scheduler = build_scheduler([PLATEAU], optimizer, HORIZON)
        with ScheduledOptimizer(optimizer, scheduler) as scheduled:
            weights[0].square().sum().backward()
            scheduled.step()
            for loss in (1.0, 2.0):
                scheduled.validated({"eval_loss": loss})
        assert (scheduler.last_epoch, scheduler.get_last_lr()) == (1, [0.5])
        assert footprint(optimizer) == footprint(bare)

    def test_a_forgotten_mode_is_the_optimizers_to_refuse(self):
        optimizer = Averaged([nn.Parameter(torch.ones(2))])
        scheduled = ScheduledOptimizer(optimizer, build_scheduler("linear", optimizer, HORIZON))
        with pytest.raises(AssertionError, match=r"train\(\) was forgotten"):
            scheduled.step()
