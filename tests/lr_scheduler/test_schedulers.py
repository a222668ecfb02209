import copy
import io

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from hypothesis import given, settings
from hypothesis import strategies as st

import optimplug.optim.lr_scheduler as ours
from optimplug import ArgumentError, StateError
from optimplug.optim import AdamW

# name: how to build it on an optimizer, from either package.
SCHEDULES = {
    "linear": lambda m, o: m.LinearLR(o, 0.1, 0.7, 20),
    "linear, defaults": lambda m, o: m.LinearLR(o),
    "linear to zero": lambda m, o: m.LinearLR(o, 1.0, 0.0, 50),
    "cosine": lambda m, o: m.CosineAnnealingLR(o, 70, 0.01),
    "cosine past its end": lambda m, o: m.CosineAnnealingLR(o, 13),
    "sequence": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.1, 1.0, 30), m.CosineAnnealingLR(o, 270)], [30]
    ),
    "sequence of three": lambda m, o: m.SequentialLR(
        o,
        [m.LinearLR(o, 0.5, 1.0, 9), m.CosineAnnealingLR(o, 50, 0.1), m.LinearLR(o, 0.2, 0.1, 8)],
        [10, 100],
    ),
}
NESTED = {
    "sequence in a sequence": lambda m, o: m.SequentialLR(
        o, [SCHEDULES["sequence"](m, o), m.LinearLR(o, 0.3, 0.1, 20)], [60]
    ),
    "a sequence first in a sequence, last in another": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, 0.2, 1.0, 7), SCHEDULES["sequence of three"](m, o)], [7]
    ),
}
ALL = {**SCHEDULES, **NESTED}


def optimizer_of(cls=torch.optim.SGD, lrs=(1.0, 0.3)):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs]
    return cls(groups, lr=0.1)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def trace(optimizer, scheduler, steps):
    """The rates at each update, and after the last."""
    found = [rates(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == rates(optimizer)
        found.append(rates(optimizer))
    return found


def run(module, build, steps=300, **kwargs):
    optimizer = optimizer_of(**kwargs)
    return trace(optimizer, build(module, optimizer), steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_trace_is_torchs(name):
    found = torch.tensor(run(ours, SCHEDULES[name]), dtype=torch.float64)
    expected = torch.tensor(run(torchs, SCHEDULES[name]), dtype=torch.float64)
    # torch multiplies its way along, so that near zero only its rounding is left.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_the_closed_form_is_the_trace(name):
    optimizer = optimizer_of()
    scheduler = ALL[name](ours, optimizer)
    bases = list(scheduler.base_lrs)
    found = trace(optimizer, scheduler, 200)
    assert found == [[scheduler.closed_form(b, t) for b in bases] for t in range(201)]


def test_two_schedulers_on_one_optimizer_act_together_as_in_torch():
    def run_both(module):
        optimizer = optimizer_of()
        warmup = module.LinearLR(optimizer, 0.1, 0.9, 20)
        decay = module.CosineAnnealingLR(optimizer, 30, 0.01)
        found = []
        for _ in range(100):
            optimizer.step()
            warmup.step()
            decay.step()
            found.append(rates(optimizer))
        return torch.tensor(found, dtype=torch.float64)

    torch.testing.assert_close(run_both(ours), run_both(torchs), rtol=1e-11, atol=1e-13)


def test_a_rate_set_by_hand_is_scaled_on_from_there():
    optimizer = optimizer_of(lrs=(1.0,))
    scheduler = ours.LinearLR(optimizer, 1.0, 0.5, 2)
    optimizer.param_groups[0]["lr"] = 10.0
    assert trace(optimizer, scheduler, 2) == [[10.0], [7.5], [5.0]]


@pytest.mark.parametrize("name", ALL)
def test_a_sequence_of_one_is_its_child_bit_for_bit(name):
    def wrapped(module, optimizer):
        return module.SequentialLR(optimizer, [ALL[name](module, optimizer)], [])

    assert run(ours, wrapped, 150) == run(ours, ALL[name], 150)


def test_the_order_in_which_children_are_built_makes_no_difference():
    def reversed_(module, optimizer):
        decay = module.CosineAnnealingLR(optimizer, 270)
        warmup = module.LinearLR(optimizer, 0.1, 1.0, 30)
        return module.SequentialLR(optimizer, [warmup, decay], [30])

    assert run(ours, reversed_) == run(ours, SCHEDULES["sequence"])


def saved(state):
    """Through a file, as a trainer would."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def load_optimizer_build_load(build, opt_state, sched_state):
    optimizer = optimizer_of(AdamW)
    optimizer.load_state_dict(opt_state)
    scheduler = build(ours, optimizer)
    scheduler.load_state_dict(sched_state)
    return optimizer, scheduler


def build_load_both(build, opt_state, sched_state):
    optimizer = optimizer_of(AdamW)
    scheduler = build(ours, optimizer)
    optimizer.load_state_dict(opt_state)
    scheduler.load_state_dict(sched_state)
    return optimizer, scheduler


def build_load_scheduler_first(build, opt_state, sched_state):
    optimizer = optimizer_of(AdamW)
    scheduler = build(ours, optimizer)
    scheduler.load_state_dict(sched_state)
    optimizer.load_state_dict(opt_state)
    return optimizer, scheduler


ORDERS = [load_optimizer_build_load, build_load_both, build_load_scheduler_first]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.integers(0, 120), st.sampled_from(ORDERS))
def test_a_resumed_run_is_the_uninterrupted_one_in_every_load_order(name, stop, order):
    optimizer = optimizer_of(AdamW)
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, stop)
    states = saved(optimizer.state_dict()), saved(scheduler.state_dict())
    kept = copy.deepcopy(states[1])
    resumed = order(ALL[name], *states)
    assert states[1] == kept
    assert trace(*resumed, 40) == trace(optimizer, scheduler, 40)


def test_a_state_dict_does_not_change_with_the_scheduler():
    optimizer = optimizer_of()
    scheduler = SCHEDULES["sequence"](ours, optimizer)
    state = scheduler.state_dict()
    kept = copy.deepcopy(state)
    trace(optimizer, scheduler, 40)
    assert state == kept


@pytest.mark.parametrize("name", SCHEDULES)
def test_torchs_state_loads(name):
    source, optimizer = optimizer_of(), optimizer_of()
    theirs = SCHEDULES[name](torchs, source)
    for _ in range(40):
        source.step()
        theirs.step()
    scheduler = SCHEDULES[name](ours, optimizer)
    scheduler.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(rates(optimizer), rates(source), rtol=1e-12, atol=1e-14)
    assert scheduler.last_epoch == 40


@pytest.mark.parametrize("name", ALL)
def test_a_group_added_in_mid_run_joins_with_its_own_rate(name):
    optimizer = optimizer_of(lrs=(1.0,))
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, 12)
    new = {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5}
    optimizer.add_param_group(new)
    found = trace(optimizer, scheduler, 60)[1:]
    assert found == [
        [scheduler.closed_form(1.0, t), scheduler.closed_form(0.5, t)] for t in range(13, 73)
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_rate_is_written_in_place_and_read_as_float(name):
    rate = torch.tensor(1.0, dtype=torch.float64)
    optimizer = optimizer_of(AdamW, lrs=(rate,))
    scheduler = ALL[name](ours, optimizer)
    found = trace(optimizer, scheduler, 40)
    assert optimizer.param_groups[0]["lr"] is rate
    assert [type(lr) for lr in scheduler.get_last_lr()] == [float]
    assert found == [[scheduler.closed_form(1.0, t)] for t in range(41)]


@pytest.mark.parametrize("wait", [0, 5])
@pytest.mark.parametrize("name", ALL)
def test_a_run_with_a_group_added_in_mid_run_resumes(name, wait):
    optimizer = optimizer_of(AdamW, lrs=(1.0,))
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, 12)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    trace(optimizer, scheduler, wait) if wait else None
    states = saved(optimizer.state_dict()), saved(scheduler.state_dict())
    again = optimizer_of(AdamW, lrs=(1.0, 0.5))
    again.load_state_dict(states[0])
    resumed = ALL[name](ours, again)
    resumed.load_state_dict(states[1])
    assert trace(again, resumed, 60)[1:] == trace(optimizer, scheduler, 60)[1:]


def test_a_rate_set_by_hand_survives_a_resume():
    optimizer, again = optimizer_of(lrs=(1.0,)), optimizer_of(lrs=(1.0,))
    scheduler, resumed = ours.LinearLR(optimizer, 0.5, 1.0, 20), ours.LinearLR(again, 0.5, 1.0, 20)
    trace(optimizer, scheduler, 7)
    optimizer.param_groups[0]["lr"] = 0.1
    resumed.load_state_dict(scheduler.state_dict())
    assert trace(again, resumed, 9) == trace(optimizer, scheduler, 9)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_schedulers_on_one_optimizer_resume_in_either_order(order):
    def build(optimizer):
        return ours.LinearLR(optimizer, 0.1, 0.9, 20), ours.CosineAnnealingLR(optimizer, 30, 0.01)

    def run_both(optimizer, both, steps):
        found = []
        for _ in range(steps):
            optimizer.step()
            for scheduler in both:
                scheduler.step()
            found.append(rates(optimizer))
        return found

    optimizer, again = optimizer_of(), optimizer_of()
    both, resumed = build(optimizer), build(again)
    run_both(optimizer, both, 7)
    for i in order:
        resumed[i].load_state_dict(both[i].state_dict())
    assert run_both(again, resumed, 30) == run_both(optimizer, both, 30)


def test_last_epoch_starts_in_the_middle_with_no_initial_lr_given():
    optimizer = optimizer_of(lrs=(1.0,))
    scheduler = ours.LinearLR(optimizer, 0.5, 1.0, 4, last_epoch=1)
    assert rates(optimizer) == [0.75]
    assert scheduler.last_epoch == 2


def test_ours_work_inside_torchs_sequence():
    def mixed(module, optimizer):
        children = [ours.LinearLR(optimizer, 0.1, 1.0, 5), ours.CosineAnnealingLR(optimizer, 20)]
        return torchs.SequentialLR(optimizer, children, [5])

    def pure(module, optimizer):
        children = [ours.LinearLR(optimizer, 0.1, 1.0, 5), ours.CosineAnnealingLR(optimizer, 20)]
        return ours.SequentialLR(optimizer, children, [5])

    assert run(ours, mixed, 30) == run(ours, pure, 30)


def test_a_subclass_in_torchs_style_works():
    class Halving(ours.LRScheduler):
        def get_lr(self):
            return [base * 0.5**self.last_epoch for base in self.base_lrs]

    assert run(ours, lambda m, o: Halving(o), 2) == [[1.0, 0.3], [0.5, 0.15], [0.25, 0.075]]


def test_it_is_a_torch_scheduler():
    assert isinstance(ours.LinearLR(optimizer_of()), torchs.LRScheduler)


class Wrapper(torch.optim.Optimizer):
    """As accelerate wraps: an Optimizer by type alone."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def test_a_wrapped_optimizer_is_looked_through():
    inner = optimizer_of()
    wrapper = Wrapper(inner)
    scheduler = SCHEDULES["sequence"](ours, wrapper)
    assert scheduler.optimizer is inner
    assert trace(inner, scheduler, 40) == run(ours, SCHEDULES["sequence"], 40)


class TestWarnings:
    def test_stepping_before_the_optimizer_warns(self):
        scheduler = ours.LinearLR(optimizer_of())
        with pytest.warns(UserWarning, match="before optimizer.step"):
            scheduler.step()

    def test_step_with_an_epoch_jumps_and_warns(self):
        optimizer = optimizer_of(lrs=(1.0,))
        scheduler = ours.LinearLR(optimizer, 0.5, 1.0, 4)
        optimizer.step()
        with pytest.warns(UserWarning, match="epoch parameter"):
            scheduler.step(2)
        assert rates(optimizer) == [0.75]


BAD = {
    "start_factor 0": (lambda o: ours.LinearLR(o, start_factor=0), "start_factor must be > 0"),
    "start_factor 2": (lambda o: ours.LinearLR(o, start_factor=2), "start_factor must be > 0"),
    "end_factor": (lambda o: ours.LinearLR(o, end_factor=-1), "end_factor must be between"),
    "total_iters": (lambda o: ours.LinearLR(o, total_iters=-1), "total_iters must be an int >= 0"),
    "eta_min": (lambda o: ours.CosineAnnealingLR(o, 5, float("nan")), "eta_min must be a finite"),
    "eta_min text": (lambda o: ours.CosineAnnealingLR(o, 5, "x"), "eta_min must be a finite"),
    "T_max": (lambda o: ours.CosineAnnealingLR(o, 0), "T_max must be an int >= 1"),
    "no schedulers": (lambda o: ours.SequentialLR(o, [], []), "at least one"),
    "milestones": (lambda o: ours.SequentialLR(o, [ours.LinearLR(o)], [3]), "one fewer"),
    "descending": (
        lambda o: ours.SequentialLR(o, [ours.LinearLR(o) for _ in range(3)], [5, 3]),
        "must ascend",
    ),
    "foreign child": (
        lambda o: ours.SequentialLR(o, [torchs.ConstantLR(o, 1.0)], []),
        r"schedulers\[0\] must be a scheduler of optimplug",
    ),
    "other optimizer": (
        lambda o: ours.SequentialLR(o, [ours.LinearLR(optimizer_of())], []),
        "same optimizer",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name):
    build, message = BAD[name]
    with pytest.raises(ArgumentError, match=message):
        build(optimizer_of())


def test_the_optimizer_is_listened_to_once_however_many_schedulers_it_has():
    optimizer = optimizer_of()
    SCHEDULES["sequence of three"](ours, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        ours.LinearLR([])


class TestBadState:
    def loads(self, build, state, message):
        optimizer = optimizer_of()
        scheduler = build(ours, optimizer)
        before = scheduler.state_dict(), rates(optimizer)
        with pytest.raises(StateError, match=message):
            scheduler.load_state_dict(state)
        assert (scheduler.state_dict(), rates(optimizer)) == before

    def test_of_another_class(self):
        state = SCHEDULES["cosine"](ours, optimizer_of()).state_dict()
        self.loads(SCHEDULES["linear"], state, "not of a LinearLR: missing .*'total_iters'")

    def test_of_another_number_of_groups(self):
        state = SCHEDULES["linear"](ours, optimizer_of(lrs=(1.0,))).state_dict()
        self.loads(SCHEDULES["linear"], state, "holds 1 groups, but the optimizer has 2")

    def test_of_a_sequence_of_another_length(self):
        state = SCHEDULES["sequence"](ours, optimizer_of()).state_dict()
        self.loads(SCHEDULES["sequence of three"], state, "2 schedulers, but this one has 3")

    def test_of_a_sequence_of_other_children(self):
        state = SCHEDULES["sequence"](ours, optimizer_of()).state_dict()
        state["_schedulers"].reverse()
        self.loads(SCHEDULES["sequence"], state, "not of a LinearLR")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("last_epoch", "x"), ("last_epoch", -5), ("last_epoch", True), ("last_epoch", 1.5),
            ("base_lrs", ["x", "y"]), ("_last_lr", "xy"), ("_last_lr", [0.1]), ("total_iters", "x"),
            ("start_factor", None), ("_step_count", "x"),
        ],
    )  # fmt: skip
    def test_of_values_of_another_kind(self, key, value):
        state = {**SCHEDULES["linear"](ours, optimizer_of()).state_dict(), key: value}
        self.loads(SCHEDULES["linear"], state, key if value != [0.1] else "holds 1 groups")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("_schedulers", None),
            ("_schedulers", [3, 4]),
            ("_milestones", "x"),
            ("_milestones", [1, 2]),
        ],
    )
    def test_of_a_sequence_of_another_kind(self, key, value):
        state = {**SCHEDULES["sequence"](ours, optimizer_of()).state_dict(), key: value}
        self.loads(SCHEDULES["sequence"], state, key)
