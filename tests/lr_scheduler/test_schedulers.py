import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.rows import each_in_turn
from support.schedules import (
    ALL,
    CHAINS,
    CLOSED,
    NESTED,
    PLATEAUS,
    SCALING,
    SEQUENCES,
    SETTING,
    TORCHS,
    WITH_PLATEAUS,
    Halving,
    advance,
    optimizer_of,
    rates,
    run,
    trace,
)

import optimplug.optim.lr_scheduler as ours
from optimplug.optim import AdamW

SCHEDULES = {**SCALING, **SEQUENCES}


def assert_close(found, expected, rtol=1e-12, atol=0.0):
    found, expected = (torch.tensor(rows, dtype=torch.float64) for rows in (found, expected))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", {**TORCHS, **PLATEAUS})
def test_the_trace_is_torchs(name):
    build = ALL[name]
    assert_close(run(ours, build), run(torchs, build))


@pytest.mark.parametrize("name", {**SETTING, "linear": None})
def test_the_trace_is_torchs_with_betas(name):
    build = ALL[name]
    assert_close(run(ours, build, 60, cls=AdamW), run(torchs, build, 60, cls=torch.optim.AdamW))


@pytest.mark.parametrize(
    ("first", "second"),
    each_in_turn([*SCALING], [*SCALING, "lambda", "restarts", "one cycle"], least=60),
)
def test_schedulers_that_scale_act_together_as_in_torch(first, second):
    def build(m, o):
        return m.ChainedScheduler([ALL[first](m, o), ALL[second](m, o)])

    # torch multiplies its way along: of a cosine near its minimum only rounding is left.
    assert_close(run(ours, build, 60), run(torchs, build, 60), 1e-11, 1e-13)


FROM_STEP_TO_STEP = {name for name in SCALING if "multiplicative" in name}
OF_ONE_RATE = [n for n in SCHEDULES if n not in FROM_STEP_TO_STEP and "set" not in n]


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_is_the_trace(name):
    optimizer = optimizer_of()
    scheduler = CLOSED[name](ours, optimizer)
    found = [row[:2] for row in trace(optimizer, scheduler, 200)]
    expected = [scheduler.rates(t) for t in range(201)]
    if name in FROM_STEP_TO_STEP:  # so that each function is called once a step
        assert_close(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("name", OF_ONE_RATE)
def test_the_closed_form_of_one_rate_is_that_of_its_group(name):
    scheduler = ALL[name](ours, optimizer_of())
    for t in range(100):
        bases = scheduler.base_lrs
        assert [scheduler.closed_form(base, t) for base in bases] == scheduler.rates(t)


@pytest.mark.parametrize("name", ["cyclic", "one cycle", "lambda", "plateau"])
def test_where_groups_differ_in_more_than_their_rates_there_is_no_form_for_one(name):
    with pytest.raises(NotImplementedError, match="no closed form for a single rate"):
        ALL[name](ours, optimizer_of()).closed_form(1.0, 3)


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
    assert [row[0] for row in trace(optimizer, scheduler, 2)] == [10.0, 7.5, 5.0]


@pytest.mark.parametrize(
    ("own", "build"),
    [
        (0.0, lambda m, o: m.ExponentialLR(o, 0.9)),
        (0.0, lambda m, o: m.LinearLR(o, 0.5, 1.0, 9)),
        (0.0, lambda m, o: m.CosineAnnealingLR(o, 20)),
        (0.05, lambda m, o: m.CosineAnnealingLR(o, 20, 0.05)),
    ],
    ids=["exponential", "linear", "cosine", "cosine with a minimum"],
)
def test_a_rate_set_by_hand_where_there_was_none_follows_the_factor_as_in_torch(own, build):
    found = []
    for module in (ours, torchs):
        optimizer = optimizer_of(lrs=(own,))
        scheduler = build(module, optimizer)
        trace(optimizer, scheduler, 2)
        optimizer.param_groups[0]["lr"] = 0.1
        found.append(trace(optimizer, scheduler, 4))
    assert_close(*found)
    assert found[0][-1][0] != 0.1


def add_group(optimizer, lr=0.5):
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": lr})


def joined(module, build, before=12, after=60):
    """The rates after a group has joined in mid-run, as far as this package can go on."""
    optimizer = optimizer_of()
    scheduler = build(module, optimizer)
    trace(optimizer, scheduler, before)
    add_group(optimizer)
    found = []
    for t in range(before, before + after):
        try:
            advance(optimizer, scheduler, t)
        except (ValueError, KeyError, RuntimeError):
            assert module is torchs
            break
        found.append(rates(optimizer))
    return found


TAKEN_BY_TORCH = [
    *(name for name in SCALING if "multiplicative" not in name),
    *(name for name in {**SEQUENCES, **CHAINS} if "set" not in name),
    *(name for name in PLATEAUS),
]


@pytest.mark.parametrize("name", TAKEN_BY_TORCH)
def test_a_group_added_in_mid_run_goes_on_from_the_rate_that_it_came_with_as_in_torch(name):
    found, expected = joined(ours, ALL[name]), joined(torchs, ALL[name])
    assert len(expected) >= 1
    assert_close(found[: len(expected)], expected, 1e-11, 1e-14)


REFUSED_BY_TORCH = [
    name for name in {**SCALING, **SETTING, **SEQUENCES, **CHAINS} if name not in TAKEN_BY_TORCH
]


@pytest.mark.parametrize("name", REFUSED_BY_TORCH)
def test_a_group_that_torch_cannot_take_joins_as_one_that_was_there(name):
    assert joined(torchs, ALL[name]) == []
    found = [row[1:] for row in joined(ours, ALL[name])]
    # A list for each group serves it with its last entry.
    expected = [row[:2] for row in run(ours, ALL[name], 72, lrs=(0.3, 0.5))[13:]]
    if "two" in name:
        found, expected = ([row[1:] for row in rows] for rows in (found, expected))
    assert_close(found, expected)


@pytest.mark.parametrize("name", [n for n in NESTED if n != "chain last in a sequence"])
def test_a_group_added_in_mid_run_has_its_own_rate_from_the_next_phase_on(name):
    found = [row[1:] for row in joined(ours, ALL[name], after=150)]
    expected = [row[:2] for row in run(ours, ALL[name], 162, lrs=(0.3, 0.5))[13:]]
    assert_close(found[90:], expected[90:])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", [name for name in SETTING if "two" not in name])
@pytest.mark.parametrize("last", [False, True])
def test_a_group_added_where_one_sets_the_rate_and_one_scales_it(name, apart, last):
    def stepped(lrs, late):
        optimizer = optimizer_of(lrs=lrs)
        both = [ALL[name](ours, optimizer), ours.ExponentialLR(optimizer, 1.05)]
        both = both[::-1] if last else both
        steppers = both if apart else [ours.ChainedScheduler(both)]
        found = []
        for t in range(60):
            if t == 40 and late:
                new = torch.zeros(1, requires_grad=True)
                optimizer.add_param_group({"params": [new], "lr": 0.3})
            optimizer.step()
            for scheduler in steppers:
                scheduler.step()
            found.append(rates(optimizer)[-1])
        return found[40:]

    assert stepped((1.0,), True) == stepped((1.0, 0.3), False)


@pytest.mark.parametrize("name", WITH_PLATEAUS)
def test_a_group_added_beside_a_plateau_goes_down_with_the_others(name):
    optimizer = optimizer_of(lrs=(0.3, 0.3))
    scheduler = ALL[name](ours, optimizer)
    trace(optimizer, scheduler, 1)  # nothing is lowered yet
    reached = optimizer.param_groups[0]["lr"]
    new = {"params": [torch.zeros(1, requires_grad=True)], "lr": reached, "initial_lr": 0.3}
    optimizer.add_param_group(new)
    found = [row[1:3] for row in trace(optimizer, scheduler, 60, start=1)[1:]]
    assert_close([[new] for _, new in found], [[old] for old, _ in found])
    assert found[-1] != found[0]


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_rate_is_written_in_place_and_read_as_float(name):
    rates_ = [torch.tensor(lr, dtype=torch.float64) for lr in (1.0, 0.3)]
    optimizer = optimizer_of(AdamW, lrs=rates_)
    scheduler = ALL[name](ours, optimizer)
    found = trace(optimizer, scheduler, 40)
    assert all(g["lr"] is lr for g, lr in zip(optimizer.param_groups, rates_, strict=True))
    assert {type(lr) for lr in scheduler.get_last_lr()} == {float}
    assert found == run(ours, ALL[name], 40, cls=AdamW)


@pytest.mark.parametrize("name", {**TORCHS, **NESTED})
def test_groups_that_were_lent_one_tensor_of_the_defaults_do_not_write_in_each_others(name):
    def build(lr):
        params = [torch.zeros(1, requires_grad=True) for _ in range(4)]
        optimizer = AdamW([{"params": params[:1]}, {"params": params[1:2]}], lr=lr)
        scheduler = ALL[name](ours, optimizer)
        found = trace(optimizer, scheduler, 12)
        optimizer.add_param_group({"params": params[2:3]})
        optimizer.add_param_group({"params": params[3:]})
        return found + trace(optimizer, scheduler, 12)

    assert build(torch.tensor(0.5, dtype=torch.float64)) == build(0.5)


def test_a_tensor_rate_of_less_precision_is_followed_as_well():
    optimizer = optimizer_of(AdamW, lrs=(torch.tensor(1.0), 0.3))
    scheduler = ours.LinearLR(optimizer, 0.1, 1.0, 7)
    found = [row[0] for row in trace(optimizer, scheduler, 10)]
    expected = [torch.tensor(scheduler.closed_form(1.0, t)).item() for t in range(11)]
    assert found == expected


def test_rates_given_as_ints_become_floats():
    found = run(ours, lambda m, o: m.StepLR(o, 1, 0.5), 2, lrs=(1, 2))
    assert [row[:2] for row in found] == [[1.0, 2.0], [0.5, 1.0], [0.25, 0.5]]


def test_last_epoch_starts_in_the_middle_with_no_initial_lr_given():
    optimizer = optimizer_of(lrs=(1.0,))
    scheduler = ours.LinearLR(optimizer, 0.5, 1.0, 4, last_epoch=1)
    assert rates(optimizer) == [0.75]
    assert scheduler.last_epoch == 2


MIDDLE = {
    "linear": lambda o, n: ours.LinearLR(o, 0.1, 0.7, 20, n),
    "constant": lambda o, n: ours.ConstantLR(o, 0.5, 30, n),
    "exponential": lambda o, n: ours.ExponentialLR(o, 0.99, n),
    "polynomial": lambda o, n: ours.PolynomialLR(o, 250, 0.5, n),
    "step": lambda o, n: ours.StepLR(o, 7, 0.9, n),
    "multistep": lambda o, n: ours.MultiStepLR(o, [3, 30, 80], 0.5, n),
    "cosine": lambda o, n: ours.CosineAnnealingLR(o, 70, 0.01, n),
    "lambda": lambda o, n: ours.LambdaLR(o, lambda t: 1 / (1 + t), n),
    "multiplicative": lambda o, n: ours.MultiplicativeLR(o, lambda t: 0.5 if t == 3 else 1.0, n),
    "restarts": lambda o, n: ours.CosineAnnealingWarmRestarts(o, 10, 2, 0.01, n),
    "cyclic": lambda o, n: ours.CyclicLR(o, 0.1, 1.0, 20, last_epoch=n),
    "one cycle": lambda o, n: ours.OneCycleLR(o, 1.0, 300, last_epoch=n),
    "sequence": lambda o, n: ours.SequentialLR(
        o, [ours.LinearLR(o, 0.1), ours.StepLR(o, 9)], [5], n
    ),
}


@pytest.mark.parametrize("name", MIDDLE)
def test_last_epoch_starts_anywhere(name):
    straight, late = optimizer_of(), optimizer_of()
    expected = trace(straight, MIDDLE[name](straight, -1), 60)
    scheduler = MIDDLE[name](late, 34)
    assert scheduler.last_epoch == 35
    assert trace(late, scheduler, 25) == expected[35:]


def test_the_old_name_of_the_base_class():
    assert ours._LRScheduler is ours.LRScheduler
    assert isinstance(ours.ConstantLR(optimizer_of()), ours._LRScheduler)


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

    found = run(ours, lambda m, o: Halving(o), 2)
    assert [row[:2] for row in found] == [[1.0, 0.3], [0.5, 0.15], [0.25, 0.075]]


@pytest.mark.parametrize(
    "name", ["StepLR", "LambdaLR", "OneCycleLR", "CosineAnnealingWarmRestarts"]
)
def test_the_get_lr_of_a_subclass_of_any_scheduler_is_used(name):
    def build(module, optimizer):
        class Half(getattr(module, name)):
            def get_lr(self):
                return [0.5 * lr for lr in super().get_lr()]

        arguments = {"StepLR": [3], "LambdaLR": [Halving(3)], "OneCycleLR": [1.0, 30]}
        return Half(optimizer, *arguments.get(name, [7, 2]))

    assert_close(run(ours, build, 20), run(torchs, build, 20))


@pytest.mark.parametrize("name", ALL)
def test_it_is_a_torch_scheduler(name):
    scheduler = ALL[name](ours, optimizer_of())
    assert isinstance(scheduler, torchs.LRScheduler)
    assert isinstance(scheduler, torchs.ReduceLROnPlateau) is (name in PLATEAUS)


class TestWarnings:
    def test_stepping_before_the_optimizer_warns(self):
        scheduler = ours.LinearLR(optimizer_of())
        with pytest.warns(UserWarning, match="before `optimizer.step"):
            scheduler.step()

    def test_step_with_an_epoch_jumps_and_warns(self):
        optimizer = optimizer_of(lrs=(1.0,))
        scheduler = ours.LinearLR(optimizer, 0.5, 1.0, 4)
        optimizer.step()
        with pytest.warns(UserWarning, match="epoch parameter"):
            scheduler.step(2)
        assert rates(optimizer) == [0.75]

    # torch divides by zero in one of these; the others are below.
    JUMPING = [
        name
        for name in {**SCALING, **SETTING}
        if not name.startswith(("restarts", "multiplicative", "polynomial, never"))
    ]

    @pytest.mark.parametrize("name", JUMPING)
    def test_step_with_an_epoch_goes_to_torchs_closed_form(self, name):
        optimizer, theirs = optimizer_of(), optimizer_of()
        scheduler, torchs_scheduler = ALL[name](ours, optimizer), ALL[name](torchs, theirs)
        advance(optimizer, scheduler, 0)
        advance(theirs, torchs_scheduler, 0)
        for epoch in (17, 3, 100, 0, 299):
            with pytest.warns(UserWarning, match="epoch parameter"):
                scheduler.step(epoch)
            with pytest.warns(UserWarning, match="epoch parameter"):
                torchs_scheduler.step(epoch)
            assert_close([rates(optimizer)], [rates(theirs)], 1e-12, 1e-16)

    def test_a_multiplicative_jumps_to_the_product(self):
        optimizer = optimizer_of(lrs=(1.0,))
        scheduler = ours.MultiplicativeLR(optimizer, lambda t: 0.5)
        optimizer.step()
        with pytest.warns(UserWarning, match="epoch parameter"):
            scheduler.step(3)
        assert rates(optimizer) == [0.125]

    def test_restarts_step_to_parts_of_epochs_without_a_warning_as_in_torch(self):
        found = []
        for module in (ours, torchs):
            optimizer = optimizer_of()
            scheduler = module.CosineAnnealingWarmRestarts(optimizer, 3, 2, 0.01)
            optimizer.step()
            trail = []
            for epoch in (
                0.0,
                0.25,
                2.75,
                3.5,
                8.999,
                9.0,
                25.5,
                None,
                None,
                1.5,
                None,
                None,
                None,
            ):
                scheduler.step() if epoch is None else scheduler.step(epoch)
                trail.append([*rates(optimizer), scheduler.last_epoch])
            found.append(trail)
        assert_close(*found)

    def test_a_composite_steps_to_an_epoch_as_well(self):
        optimizer = optimizer_of()
        scheduler = CHAINS["chain of three"](ours, optimizer)
        straight = trace(optimizer, scheduler, 50)
        for epoch in (20, 7):
            with pytest.warns(UserWarning, match="epoch parameter"):
                scheduler.step(epoch=epoch)
            assert rates(optimizer) == straight[epoch][:2]

    def test_the_warnings_point_at_the_call(self):
        scheduler = ours.LinearLR(optimizer_of())
        with pytest.warns(UserWarning, match="epoch|before") as caught:
            scheduler.step(epoch=3)
        assert {warning.filename for warning in caught} == {__file__}


NO_EXAMPLE = ("LRScheduler",)
EXAMPLES = {  # the arguments of each, on an optimizer
    "ChainedScheduler": lambda o: ([ours.ConstantLR(o)],),
    "ConstantLR": lambda o: (o,),
    "CosineAnnealingLR": lambda o: (o, 10),
    "CosineAnnealingWarmRestarts": lambda o: (o, 10),
    "CyclicLR": lambda o: (o, 0.1, 1.0),
    "ExponentialLR": lambda o: (o, 0.9),
    "LambdaLR": lambda o: (o, lambda t: 1.0),
    "LinearLR": lambda o: (o,),
    "MultiStepLR": lambda o: (o, [1]),
    "MultiplicativeLR": lambda o: (o, lambda t: 1.0),
    "OneCycleLR": lambda o: (o, 1.0, 10),
    "PolynomialLR": lambda o: (o,),
    "ReduceLROnPlateau": lambda o: (o, "min", 0.5, 0),
    "SequentialLR": lambda o: (o, [ours.ConstantLR(o)], []),
    "StepLR": lambda o: (o, 3),
}


class TestVerbose:
    def test_each_update_says_group_epoch_and_rate(self, capsys):
        optimizer = optimizer_of()
        scheduler = ours.ExponentialLR(optimizer, 0.5, verbose=True)
        trace(optimizer, scheduler, 1)
        assert capsys.readouterr().out.splitlines() == [
            "Epoch 00000: adjusting learning rate of group 0 to 1.0000e+00.",
            "Epoch 00000: adjusting learning rate of group 1 to 3.0000e-01.",
            "Epoch 00001: adjusting learning rate of group 0 to 5.0000e-01.",
            "Epoch 00001: adjusting learning rate of group 1 to 1.5000e-01.",
        ]

    @pytest.mark.parametrize("name", [n for n in ours.__all__ if n not in NO_EXAMPLE])
    def test_every_scheduler_has_it_and_is_silent_by_default(self, name, capsys):
        arguments = EXAMPLES[name]
        for verbose in ({}, {"verbose": False}):
            optimizer = optimizer_of(lrs=(1.0,))
            scheduler = getattr(ours, name)(*arguments(optimizer), **verbose)
            for t in range(3):
                advance(optimizer, scheduler, t)
            assert capsys.readouterr().out == ""
        optimizer = optimizer_of(lrs=(1.0,))
        scheduler = getattr(ours, name)(*arguments(optimizer), verbose=True)
        for t in range(3):
            advance(optimizer, scheduler, t)
        assert len(capsys.readouterr().out.splitlines()) == (2 if "Plateau" in name else 4)
        assert "verbose" not in scheduler.state_dict()

    def test_print_lr_prints_every_group(self, capsys):
        scheduler = ours.ExponentialLR(optimizer_of(), 0.5)
        scheduler.print_lr()
        assert capsys.readouterr().out.splitlines() == [
            "Epoch 00000: adjusting learning rate of group 0 to 1.0000e+00.",
            "Epoch 00000: adjusting learning rate of group 1 to 3.0000e-01.",
        ]

    def test_print_lr_prints_one_group(self, capsys):
        ours.ExponentialLR(optimizer_of(), 0.5).print_lr(1)
        assert capsys.readouterr().out == (
            "Epoch 00000: adjusting learning rate of group 1 to 3.0000e-01.\n"
        )


def test_the_optimizer_is_listened_to_once_however_many_schedulers_it_has():
    optimizer = optimizer_of()
    SCHEDULES["sequence of three"](ours, optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        ours.LinearLR([])


class TestAChainOfSchedulersThatHaveTakenSteps:
    """It begins where the furthest of them is, with all of them there."""

    LEAVES = {
        "linear": lambda o: ours.LinearLR(o, 0.1, 1.0, 9),
        "exponential": lambda o: ours.ExponentialLR(o, 0.8),
        "lambda": lambda o: ours.LambdaLR(o, lambda t: 1 / (1 + t)),
        "restarts": lambda o: ours.CosineAnnealingWarmRestarts(o, 4, 2),
        "product": lambda o: ours.MultiplicativeLR(o, lambda t: 0.5 if t == 3 else 1.0),
        "torch's": lambda o: torchs.StepLR(o, 2, 0.5),
    }

    @pytest.mark.parametrize("taken", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 7), (7, 3)])
    @pytest.mark.parametrize("first", ["linear", "lambda"])
    @pytest.mark.parametrize("second", ["exponential", "restarts", "product", "torch's"])
    def test_is_the_chain_from_the_start(self, first, second, taken):
        straight, optimizer = optimizer_of(), optimizer_of()
        names = first, second
        expected = trace(
            straight, ours.ChainedScheduler([self.LEAVES[n](straight) for n in names]), 20
        )
        children = [self.LEAVES[name](optimizer) for name in names]
        for child, steps in zip(children, taken, strict=True):
            for _ in range(steps):
                optimizer.step()
                child.step()
        chain, furthest = ours.ChainedScheduler(children), max(taken)
        assert [chain.last_epoch, *(c.last_epoch for c in children)] == [furthest] * 3
        assert_close(trace(optimizer, chain, 20 - furthest), expected[furthest:])
