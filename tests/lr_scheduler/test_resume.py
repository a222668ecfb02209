"""A run that is saved and resumed is the uninterrupted one, in whichever order things are loaded."""

import copy

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schedules import (
    ALL,
    ORDERS,
    PLATEAUS,
    SCALING,
    SEQUENCES,
    SETTING,
    TORCHS,
    Halving,
    optimizer_of,
    rates,
    resumed,
    saved,
    trace,
)

import optimplug.optim.lr_scheduler as ours
from optimplug.optim import AdamW


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ALL)), st.integers(0, 120), st.sampled_from(ORDERS))
def test_a_resumed_run_is_the_uninterrupted_one_in_every_load_order(name, stop, order):
    optimizer = optimizer_of(AdamW)
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, stop)
    again = resumed(ALL[name], lambda: optimizer_of(AdamW), optimizer, scheduler, order)
    assert trace(*again, 40, start=stop) == trace(optimizer, scheduler, 40, start=stop)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ALL)
def test_every_scheduler_resumes_in_every_load_order(name, order):
    optimizer = optimizer_of()
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, 11)
    again = resumed(ALL[name], optimizer_of, optimizer, scheduler, order)
    assert trace(*again, 30, start=11) == trace(optimizer, scheduler, 30, start=11)


LEAVES = sorted({**SCALING, **SETTING, **PLATEAUS})
COUNTS = st.lists(st.integers(0, 25), min_size=3, max_size=3)
# A tree: the name of a leaf, or a kind of composite with children and what it needs besides.
TREES = st.recursive(
    st.sampled_from(LEAVES),
    lambda children: st.tuples(
        st.sampled_from(["sequence", "chain"]),
        st.lists(children, min_size=1, max_size=3),
        COUNTS,
        st.permutations(range(3)),
    ),
    max_leaves=5,
)


def build_tree(tree, optimizer, reorder=True):
    """Build what a tree says; the children in the order of its permutation, or as they stand."""
    if isinstance(tree, str):
        return ALL[tree](ours, optimizer)
    kind, children, counts, order = tree
    built = [None] * len(children)
    for i in [i for i in order if i < len(children)] if reorder else range(len(children)):
        built[i] = build_tree(children[i], optimizer, reorder)
    if kind == "chain":
        return ours.ChainedScheduler(built)
    milestones = sorted(counts)[: len(built) - 1]
    return ours.SequentialLR(optimizer, built, milestones)


@settings(max_examples=80, deadline=None)
@given(
    TREES, st.integers(0, 60), st.sampled_from(ORDERS), st.sampled_from([torch.optim.SGD, AdamW])
)
def test_any_nesting_resumes_exactly(tree, stop, order, cls):
    def build(module, optimizer):
        return build_tree(tree, optimizer)

    optimizer = optimizer_of(cls)
    scheduler = build(ours, optimizer)
    trace(optimizer, scheduler, stop)
    again = resumed(build, lambda: optimizer_of(cls), optimizer, scheduler, order)
    assert trace(*again, 30, start=stop) == trace(optimizer, scheduler, 30, start=stop)


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_in_any_nesting_the_order_of_building_makes_no_difference(tree):
    found = []
    for reorder in (True, False):
        optimizer = optimizer_of()
        found.append(trace(optimizer, build_tree(tree, optimizer, reorder), 60))
    assert found[0] == found[1]


@settings(max_examples=40, deadline=None)
@given(TREES, st.sampled_from(["sequence", "chain"]))
def test_around_any_nesting_a_composite_of_one_makes_no_difference(tree, kind):
    found = []
    for whole in (tree, (kind, [tree], [0, 0, 0], [0, 1, 2])):
        optimizer = optimizer_of()
        found.append(trace(optimizer, build_tree(whole, optimizer), 60))
    assert found[0] == found[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(TREES, min_size=2, max_size=3), COUNTS)
def test_a_sequence_is_the_runs_of_its_children_end_to_end(children, counts):
    optimizer = optimizer_of()
    milestones = sorted(counts)[: len(children) - 1]
    tree = ("sequence", children, milestones, [0, 1, 2])
    found = [row[:2] for row in trace(optimizer, build_tree(tree, optimizer), 60)]
    expected = []
    for child, start, end in zip(children, [0, *milestones], [*milestones, 61], strict=True):
        alone = optimizer_of()
        expected += trace(alone, build_tree(child, alone), end - start, start=start)[:-1]
    assert found == [row[:2] for row in expected]


def test_a_state_dict_does_not_change_with_the_scheduler():
    optimizer = optimizer_of()
    scheduler = SEQUENCES["sequence"](ours, optimizer)
    state = scheduler.state_dict()
    kept = copy.deepcopy(state)
    trace(optimizer, scheduler, 40)
    assert state == kept


@pytest.mark.parametrize("name", {**TORCHS, **PLATEAUS})
def test_torchs_state_loads(name):
    source, optimizer = optimizer_of(), optimizer_of()
    theirs = ALL[name](torchs, source)
    trace(source, theirs, 40)
    scheduler = ALL[name](ours, optimizer)
    scheduler.load_state_dict(theirs.state_dict())
    assert scheduler.last_epoch == 40
    found = trace(optimizer, scheduler, 30, start=40)
    expected = trace(source, theirs, 30, start=40)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-11,
        atol=1e-14,
    )


@pytest.mark.parametrize("wait", [0, 5])
@pytest.mark.parametrize("name", [n for n in ALL if "two" not in n and n != "plateau, min abs"])
def test_a_run_with_a_group_added_in_mid_run_resumes(name, wait):
    optimizer = optimizer_of(AdamW, lrs=(1.0,))
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, 12)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    trace(optimizer, scheduler, wait, start=12) if wait else None
    again = resumed(
        ALL[name], lambda: optimizer_of(AdamW, (1.0, 0.5)), optimizer, scheduler, ORDERS[0]
    )
    found, expected = trace(*again, 60, start=12 + wait), trace(optimizer, scheduler, 60, 12 + wait)
    assert found[1:] == expected[1:]


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


class TestFunctions:
    def test_what_an_object_has_learnt_is_saved_with_it(self):
        class Counting:
            def __init__(self):
                self.calls = 0

            def __call__(self, t):
                self.calls += 1
                return 1 / self.calls

        def build(module, optimizer):
            return module.LambdaLR(optimizer, [Counting(), lambda t: 0.5])

        optimizer = optimizer_of()
        scheduler = build(ours, optimizer)
        trace(optimizer, scheduler, 7)
        assert scheduler.state_dict()["lr_lambdas"] == [{"calls": 8}, None]
        again = resumed(build, optimizer_of, optimizer, scheduler, ORDERS[0])
        assert trace(*again, 9) == trace(optimizer, scheduler, 9)

    def test_the_saved_attributes_are_a_copy(self):
        function = Halving(30)
        scheduler = ours.LambdaLR(optimizer_of(), function)
        state = scheduler.state_dict()
        function.every = 7
        assert state["lr_lambdas"] == [{"every": 30}, {"every": 30}]
        scheduler.load_state_dict(state)
        assert function.every == 30

    def test_a_function_is_called_once_for_each_group_and_step(self):
        for name in ("LambdaLR", "MultiplicativeLR"):
            calls = []
            optimizer = optimizer_of()
            scheduler = getattr(ours, name)(
                optimizer, lambda t, calls=calls: calls.append(t) or 1.0
            )
            trace(optimizer, scheduler, 3)
            assert calls == [t for t in range(4) for _ in range(2) if t or name == "LambdaLR"]


def test_the_momentum_of_a_phase_to_come_is_not_there_yet():
    """In torch building a later phase sets it at once."""
    optimizer = optimizer_of()
    phases = [ours.LinearLR(optimizer, 0.5, 1.0, 3), ours.OneCycleLR(optimizer, 1.0, 300)]
    scheduler = ours.SequentialLR(optimizer, phases, [3])
    found = [row[2:] for row in trace(optimizer, scheduler, 4)]
    assert found[:3] == [[0.6, 0.6]] * 3
    assert found[3] == [0.95, 0.95]
    assert found[4] != found[3]


def test_a_plateau_that_has_lowered_the_rate_is_resumed_with_its_counts():
    optimizer = optimizer_of()
    scheduler = ours.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=2)
    for loss in (1.0, 1.0, 1.0, 1.0):
        optimizer.step()
        scheduler.step(loss)
    state = saved(scheduler.state_dict())
    assert (state["best"], state["num_bad_epochs"], state["cooldown_counter"]) == (1.0, 0, 1)
    again = optimizer_of()
    other = ours.ReduceLROnPlateau(again, factor=0.5, patience=1, cooldown=2)
    other.load_state_dict(state)
    assert rates(again) == rates(optimizer) == [0.5, 0.15]
    assert other.state_dict() == scheduler.state_dict()
