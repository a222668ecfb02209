"""Where ours differs from torch: every row of the table in docs/schedulers.md, with what torch does.

If a test fails because torch has changed its mind, the row can go.
"""

import re
from pathlib import Path

import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import advance, momentums, optimizer_of, rates, trace

import optimplug.optim.lr_scheduler as ours
from optimplug.errors import ArgumentError
from optimplug.optim import AdamW

DOCS = Path(__file__).parents[2] / "docs" / "schedulers.md"


def firsts(module, build, steps, **kwargs):
    """The rates of the first group, step by step."""
    optimizer = optimizer_of(**kwargs)
    return [row[0] for row in trace(optimizer, build(module, optimizer), steps)]


def test_every_row_of_the_docs_names_a_test_and_every_test_has_a_row():
    named = re.findall(r"`(test_\w+)`", DOCS.read_text())
    here = [
        name for name in globals() if name.startswith("test_") and "row_of_the_docs" not in name
    ]
    assert sorted(named) == sorted(here)


class Resume:
    """Load the optimizer, build the scheduler, load the scheduler."""

    def __init__(self, module, build):
        self.optimizer = optimizer_of(AdamW)
        self.scheduler = build(module, self.optimizer)
        trace(self.optimizer, self.scheduler, 7)
        self.again = optimizer_of(AdamW)
        self.again.load_state_dict(self.optimizer.state_dict())
        self.resumed = build(module, self.again)
        self.resumed.load_state_dict(self.scheduler.state_dict())


def test_resume_in_every_order():
    def build(module, optimizer):
        return module.StepLR(optimizer, 3)

    found = Resume(ours, build)
    assert trace(found.again, found.resumed, 9) == trace(found.optimizer, found.scheduler, 9)
    theirs = Resume(torchs, lambda m, o: m.LinearLR(o, 0.1, 1.0, 20))
    assert rates(theirs.again) != rates(theirs.optimizer)


@pytest.mark.parametrize("name", ["LambdaLR", "CyclicLR", "OneCycleLR"])
def test_groups_added_in_mid_run(name):
    arguments = {"LambdaLR": [lambda t: 0.5], "CyclicLR": [0.1, 1.0], "OneCycleLR": [1.0, 9]}[name]
    for module, works in ((ours, True), (torchs, False)):
        optimizer = optimizer_of()
        scheduler = getattr(module, name)(optimizer, *arguments)
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
        if works:
            trace(optimizer, scheduler, 3)
        else:
            with pytest.raises((ValueError, KeyError)):
                trace(optimizer, scheduler, 3)


def test_a_plateau_inside_a_composite():
    def build(module, optimizer):
        plateau = module.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return module.SequentialLR(optimizer, [module.ConstantLR(optimizer, 0.1, 9), plateau], [2])

    optimizer = optimizer_of()
    scheduler = build(ours, optimizer)
    found = [rates(optimizer)[0]]
    for metrics in (None, None, 1.0, 1.0, 0.5, 0.5):
        optimizer.step()
        scheduler.step(metrics)
        found.append(rates(optimizer)[0])
    assert found == [0.1, 0.1, 1.0, 1.0, 0.5, 0.5, 0.25]
    with pytest.raises(ValueError, match="does not support"):
        build(torchs, optimizer_of())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_sequence_around_one_sequence():
    def inner(module, optimizer):
        linear = module.LinearLR(optimizer, 0.1, 1.0, 5)
        return module.SequentialLR(optimizer, [linear, module.ExponentialLR(optimizer, 0.9)], [5])

    def outer(module, optimizer):
        return module.SequentialLR(optimizer, [inner(module, optimizer)], [])

    assert firsts(ours, outer, 9) == firsts(ours, inner, 9)
    assert firsts(torchs, outer, 9) != firsts(torchs, inner, 9)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_nested_composites():
    def chain(module, optimizer):
        linear = module.LinearLR(optimizer, 0.1, 1.0, 5)
        return module.ChainedScheduler([linear, module.ExponentialLR(optimizer, 0.9)])

    def first(module, optimizer):
        phases = [chain(module, optimizer), module.ConstantLR(optimizer, 0.5, 9)]
        return module.SequentialLR(optimizer, phases, [6])

    def last(module, optimizer):
        phases = [module.ConstantLR(optimizer, 0.5, 9), chain(module, optimizer)]
        return module.SequentialLR(optimizer, phases, [4])

    def two(module, optimizer):
        both = [module.ConstantLR(optimizer, 0.1, 2), module.ExponentialLR(optimizer, 0.9)]
        inner = [module.SequentialLR(optimizer, [each], []) for each in both]
        return module.ChainedScheduler(inner)

    alone = firsts(ours, chain, 5)
    assert firsts(ours, first, 5) == firsts(ours, last, 9)[4:] == alone
    assert firsts(torchs, chain, 5) == pytest.approx(alone, rel=1e-12)
    assert firsts(torchs, first, 5) == pytest.approx([lr * 0.9 for lr in alone])
    with pytest.raises(NotImplementedError):
        firsts(torchs, last, 9)
    assert firsts(ours, two, 2) == pytest.approx([0.1, 0.09, 0.81])
    assert firsts(torchs, two, 2)[1:] != pytest.approx([0.09, 0.81])


def test_a_product_jumps_to_an_epoch():
    found = []
    for module in (ours, torchs):
        optimizer = optimizer_of()
        scheduler = module.MultiplicativeLR(optimizer, lambda t: 0.5)
        optimizer.step()
        with pytest.warns(UserWarning, match="epoch"):
            scheduler.step(3)
        found.append(rates(optimizer)[0])
    assert found == [0.125, 0.5]


def test_half_steps():
    for module, works in ((ours, True), (torchs, False)):
        optimizer = optimizer_of()
        scheduler = module.StepLR(optimizer, 3)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].add_(1.0)
        if works:
            scheduler.step()
        else:
            with pytest.warns(UserWarning, match="before `optimizer.step"):
                scheduler.step()


def test_the_order_of_building():
    def build(module, optimizer):
        linear = module.LinearLR(optimizer, 0.5, 1.0, 5)
        one_cycle = module.OneCycleLR(optimizer, 1.0, 300)
        return module.SequentialLR(optimizer, [linear, one_cycle], [5])

    assert firsts(ours, build, 4)[:2] == [0.5, 0.6]
    assert firsts(torchs, build, 4)[:2] == pytest.approx([0.02, 0.024])  # of OneCycleLR's own start


def test_own_rates_are_kept():
    optimizer, theirs = optimizer_of(), optimizer_of()
    ours.OneCycleLR(optimizer, 1.0, 300)
    torchs.OneCycleLR(theirs, 1.0, 300)
    kept = [group["initial_lr"] for group in optimizer.param_groups]
    assert kept == [1.0, 0.3]
    assert rates(optimizer) == pytest.approx([0.04, 0.04], rel=1e-12)
    assert "max_lr" not in optimizer.param_groups[0]
    assert [group["initial_lr"] for group in theirs.param_groups] == [0.04, 0.04]


def test_momentum_waits_for_its_phase():
    found = {}
    for module in (ours, torchs):
        optimizer = optimizer_of(momentum=0.6)
        linear = module.ConstantLR(optimizer, 0.5)
        one_cycle = module.OneCycleLR(optimizer, 1.0, 300)
        scheduler = module.SequentialLR(optimizer, [linear, one_cycle], [3])
        found[module] = [momentums(optimizer)[0]]
        for t in range(3):
            advance(optimizer, scheduler, t)
            found[module].append(momentums(optimizer)[0])
    assert found == {ours: [0.6, 0.6, 0.6, 0.95], torchs: [0.95] * 4}


def test_a_cycle_on_groups_that_had_a_scheduler():
    def build(module, optimizer):
        module.ConstantLR(optimizer, 1.0)
        return module.CyclicLR(optimizer, 0.1, 0.5, 4)

    assert firsts(ours, build, 2) == pytest.approx([0.1, 0.2, 0.3])
    assert firsts(torchs, build, 2) == pytest.approx([1.0, 0.2, 0.3])


def test_loading_leaves_the_state_alone():
    state = ours.CyclicLR(optimizer_of(), 0.1, 1.0).state_dict()
    theirs = torchs.CyclicLR(optimizer_of(), 0.1, 1.0)
    torchs_state = theirs.state_dict()
    scheduler = ours.CyclicLR(optimizer_of(), 0.1, 1.0)
    for _ in range(2):
        scheduler.load_state_dict(state)
    theirs.load_state_dict(torchs_state)
    with pytest.raises(KeyError):
        theirs.load_state_dict(torchs_state)


def test_a_state_of_another_scheduler():
    state = torchs.ExponentialLR(optimizer_of(), 0.9).state_dict()
    torchs.CosineAnnealingLR(optimizer_of(), 9).load_state_dict(state)  # without a word
    with pytest.raises(ValueError, match="not of a CosineAnnealingLR"):
        ours.CosineAnnealingLR(optimizer_of(), 9).load_state_dict(state)


def test_last_epoch_is_the_closed_form():
    def build(module, optimizer):
        return module.ExponentialLR(optimizer, 0.5, last_epoch=2)

    optimizer, theirs = optimizer_of(), optimizer_of()
    build(ours, optimizer)
    assert rates(optimizer) == [0.125, 0.0375]
    with pytest.raises(KeyError, match="initial_lr"):
        build(torchs, theirs)


def test_rates_are_floats():
    optimizer = optimizer_of(AdamW, lrs=(torch.tensor(1.0), torch.tensor(0.5)))
    assert {type(lr) for lr in ours.StepLR(optimizer, 3).get_last_lr()} == {float}
    assert {type(lr) for lr in torchs.StepLR(optimizer, 3).get_last_lr()} == {torch.Tensor}


def test_counts_of_zero_and_factors_of_zero():
    for name, arguments, expected in (
        ("LinearLR", (0.5, 0.25, 0), [0.25, 0.25]),
        ("ConstantLR", (0.0, 1), [0.0, 1.0]),
    ):

        def build(module, optimizer, name=name, arguments=arguments):
            return getattr(module, name)(optimizer, *arguments)

        assert firsts(ours, build, 1) == expected
        if name == "ConstantLR":
            with pytest.raises(ZeroDivisionError):
                firsts(torchs, build, 1)
        else:
            assert firsts(torchs, build, 1) != expected
    assert firsts(ours, lambda m, o: m.ConstantLR(o, 0.5, 0), 2) == [1.0, 1.0, 1.0]
    assert firsts(torchs, lambda m, o: m.ConstantLR(o, 0.5, 0), 2) == [0.5, 0.5, 0.5]


def test_one_cycle_with_a_rise_of_no_steps():
    def build(module, optimizer):
        return module.OneCycleLR(optimizer, 1.0, 10, pct_start=0.1)

    assert firsts(ours, build, 9)[0] == 1.0
    with pytest.raises(ZeroDivisionError):
        build(torchs, optimizer_of())


def test_one_cycle_whose_arguments_contradict_each_other():
    assert torchs.OneCycleLR(optimizer_of(), 1.0, 100, 3, 4).total_steps == 100
    with pytest.raises(ValueError, match="total_steps must be epochs"):
        ours.OneCycleLR(optimizer_of(), 1.0, 100, 3, 4)


def test_milestones_that_decrease():
    torchs.MultiStepLR(optimizer_of(), [30, 10])
    with pytest.raises(ValueError, match="milestones must ascend"):
        ours.MultiStepLR(optimizer_of(), [30, 10])


def test_a_multiplicative_phase_begins_anew():
    def build(module, optimizer):
        product = module.MultiplicativeLR(optimizer, lambda t: 0.5)
        return module.SequentialLR(optimizer, [module.ConstantLR(optimizer, 0.1, 9), product], [1])

    assert firsts(ours, build, 2) == [0.1, 1.0, 0.5]
    assert firsts(torchs, build, 2) == pytest.approx([0.1, 0.05, 0.025])


def test_restarts_are_where_they_should_be():
    def build(module):
        optimizer = optimizer_of()
        scheduler = module.CosineAnnealingWarmRestarts(optimizer, 1, 3)
        optimizer.step()
        scheduler.step(121)  # 1 + 3 + 9 + 27 + 81: the sixth cycle begins
        return rates(optimizer)[0]

    assert build(ours) == 1.0
    assert build(torchs) == pytest.approx(0.0)


def test_epochs_are_whole():
    scheduler, theirs = ours.CosineAnnealingLR(optimizer_of(), 9), torchs.LinearLR(optimizer_of())
    for each in (scheduler, theirs):
        each.optimizer.step()
    with pytest.warns(UserWarning, match="epoch"):
        theirs.step(2.5)
    with pytest.raises(ValueError, match="epoch must be an int >= 0"):
        scheduler.step(2.5)


def test_counts_are_whole():
    for name, whole, fraction in (
        ("CosineAnnealingLR", 10.0, 10.5),
        ("MultiStepLR", [5.0, 7.0], [2.5]),
        ("StepLR", 3.0, 2.5),
    ):
        cls = getattr(ours, name)
        found = firsts(ours, lambda m, o, whole=whole, name=name: getattr(m, name)(o, whole), 9)
        theirs = firsts(torchs, lambda m, o, whole=whole, name=name: getattr(m, name)(o, whole), 9)
        torch.testing.assert_close(found, theirs, rtol=1e-12, atol=0)
        with pytest.raises(ArgumentError, match=r"must be an int >= . \(got \d+\.5\)"):
            cls(optimizer_of(), fraction)
        getattr(torchs, name)(optimizer_of(), fraction)
