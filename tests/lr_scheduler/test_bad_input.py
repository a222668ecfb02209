"""Bad arguments, bad steps and bad states: each is named, and changes nothing."""

import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import torch.optim.lr_scheduler as torchs
from support.schedules import ALL, SCALING, SEQUENCES, Halving, optimizer_of, rates, saved, trace

import optimplug.optim.lr_scheduler as ours
from optimplug import ArgumentError, Horizon, StateError
from optimplug.optim import MultiOptimizer, TransformersAdafactor
from optimplug.recipe import build_scheduler

BAD = {
    "start_factor 0": (lambda o: ours.LinearLR(o, start_factor=0), "start_factor must be > 0"),
    "start_factor 2": (lambda o: ours.LinearLR(o, start_factor=2), "start_factor must be > 0"),
    "end_factor": (lambda o: ours.LinearLR(o, end_factor=-1), "end_factor must be between"),
    "total_iters": (lambda o: ours.LinearLR(o, total_iters=-1), "total_iters must be an int >= 0"),
    "eta_min": (lambda o: ours.CosineAnnealingLR(o, 5, float("nan")), "eta_min must be a finite"),
    "eta_min text": (lambda o: ours.CosineAnnealingLR(o, 5, "x"), "eta_min must be a finite"),
    "T_max": (lambda o: ours.CosineAnnealingLR(o, 0), "T_max must be an int >= 1"),
    "no schedulers": (lambda o: ours.SequentialLR(o, [], []), "at least one"),
    "milestones": (lambda o: ours.SequentialLR(o, [ours.ConstantLR(o, 1.0)], [3]), "one fewer"),
    "descending": (
        lambda o: ours.SequentialLR(o, [ours.ConstantLR(o, 1.0) for _ in range(3)], [5, 3]),
        "must ascend",
    ),
    "no scheduler": (
        lambda o: ours.SequentialLR(o, [print], []),
        r"schedulers\[0\] must be a scheduler .got <built-in",
    ),
    "torch's of another optimizer": (
        lambda o: ours.SequentialLR(o, [torchs.LinearLR(optimizer_of())], []),
        "same optimizer",
    ),
    "other optimizer": (
        lambda o: ours.SequentialLR(o, [ours.LinearLR(optimizer_of())], []),
        "same optimizer",
    ),
    "constant factor": (
        lambda o: ours.ConstantLR(o, 1.5),
        "factor must be between 0 and 1 .got 1.5",
    ),
    "constant count": (
        lambda o: ours.ConstantLR(o, 0.5, 2.5),
        "total_iters must be an int >= 0 .got 2.5",
    ),
    "gamma": (
        lambda o: ours.ExponentialLR(o, -0.5),
        "gamma must be a finite number >= 0 .got -0.5",
    ),
    "gamma nan": (lambda o: ours.StepLR(o, 3, float("nan")), "gamma must be .* .got nan"),
    "gamma text": (lambda o: ours.MultiStepLR(o, [3], "x"), "gamma must be .* .got 'x'"),
    "step_size": (lambda o: ours.StepLR(o, 0), "step_size must be an int >= 1 .got 0"),
    "step milestones": (
        lambda o: ours.MultiStepLR(o, [30, 10]),
        r"milestones must ascend .got \[30, 10\]",
    ),
    "negative milestone": (
        lambda o: ours.MultiStepLR(o, [-1]),
        "each of milestones must be an int >= 0",
    ),
    "power": (lambda o: ours.PolynomialLR(o, 5, -1), "power must be a finite number >= 0 .got -1"),
    "polynomial count": (
        lambda o: ours.PolynomialLR(o, -5),
        "total_iters must be an int >= 0 .got -5",
    ),
    "T_0": (lambda o: ours.CosineAnnealingWarmRestarts(o, 0), "T_0 must be an int >= 1 .got 0"),
    "T_mult": (lambda o: ours.CosineAnnealingWarmRestarts(o, 5, 0), "T_mult must be an int >= 1"),
    "restarts eta_min": (
        lambda o: ours.CosineAnnealingWarmRestarts(o, 5, 1, "x"),
        "eta_min must be",
    ),
    "last_epoch": (lambda o: ours.LinearLR(o, last_epoch=-2), "last_epoch must be an int >= -1"),
    "lr_lambda": (lambda o: ours.LambdaLR(o, 3), "lr_lambda must be a function of a step .got 3"),
    "lr_lambda count": (lambda o: ours.LambdaLR(o, [len]), "one for each of the 2 groups .got 1"),
    "multiplicative": (
        lambda o: ours.MultiplicativeLR(o, [len, None]),
        "lr_lambda must be a function",
    ),
    "base_lr": (lambda o: ours.CyclicLR(o, -1, 1), "base_lr must be a finite number >= 0 .got -1"),
    "max_lr": (
        lambda o: ours.CyclicLR(o, 0.1, [1, 2, 3]),
        "max_lr must be one value, or one for each",
    ),
    "step_size_up": (lambda o: ours.CyclicLR(o, 0.1, 1, 0), "step_size_up must be a number > 0"),
    "step_size_down": (
        lambda o: ours.CyclicLR(o, 0.1, 1, 5, -1),
        "step_size_down must be a number >= 0",
    ),
    "cyclic mode": (
        lambda o: ours.CyclicLR(o, 0.1, 1, mode="square"),
        "mode must be one of triangular,",
    ),
    "scale_mode": (lambda o: ours.CyclicLR(o, 0.1, 1, scale_mode="x"), "scale_mode must be one of"),
    "scale_fn": (lambda o: ours.CyclicLR(o, 0.1, 1, scale_fn=3), "scale_fn must be a function"),
    "base_momentum": (
        lambda o: ours.CyclicLR(o, 0.1, 1, base_momentum="x"),
        "base_momentum must be",
    ),
    "no total": (
        lambda o: ours.OneCycleLR(o, 1.0, epochs=3),
        "total_steps must be given, or epochs",
    ),
    "total": (lambda o: ours.OneCycleLR(o, 1.0, 0), "total_steps must be an int >= 1 .got 0"),
    "epochs": (
        lambda o: ours.OneCycleLR(o, 1.0, epochs=-1, steps_per_epoch=3),
        "epochs must be an int >= 1",
    ),
    "contradiction": (
        lambda o: ours.OneCycleLR(o, 1.0, 100, 10, 11),
        r"total_steps must be epochs \* steps_per_epoch = 110, or left out .got 100",
    ),
    "pct_start": (
        lambda o: ours.OneCycleLR(o, 1.0, 9, pct_start=2),
        "pct_start must be between 0 and 1",
    ),
    "anneal": (
        lambda o: ours.OneCycleLR(o, 1.0, 9, anneal_strategy="x"),
        "anneal_strategy must be one of",
    ),
    "div_factor": (
        lambda o: ours.OneCycleLR(o, 1.0, 9, div_factor=0),
        "div_factor must be a number > 0",
    ),
    "final": (lambda o: ours.OneCycleLR(o, 1.0, 9, final_div_factor=0), "final_div_factor must be"),
    "past the end": (
        lambda o: ours.OneCycleLR(o, 1.0, 9, last_epoch=20),
        "total_steps = 9 must cover",
    ),
    "mode": (
        lambda o: ours.ReduceLROnPlateau(o, "least"),
        "mode must be one of min, max .got 'least'",
    ),
    "factor": (
        lambda o: ours.ReduceLROnPlateau(o, factor=1.0),
        "factor must be >= 0 and < 1 .got 1.0",
    ),
    "patience": (lambda o: ours.ReduceLROnPlateau(o, patience=-1), "patience must be an int >= 0"),
    "threshold": (lambda o: ours.ReduceLROnPlateau(o, threshold="x"), "threshold must be a finite"),
    "threshold_mode": (
        lambda o: ours.ReduceLROnPlateau(o, threshold_mode="x"),
        "threshold_mode must be",
    ),
    "cooldown": (lambda o: ours.ReduceLROnPlateau(o, cooldown=-1), "cooldown must be an int >= 0"),
    "min_lr": (
        lambda o: ours.ReduceLROnPlateau(o, min_lr=[0.1]),
        "min_lr must be one value, or one for",
    ),
    "eps": (lambda o: ours.ReduceLROnPlateau(o, eps=-1), "eps must be a finite number >= 0"),
    "nan_policy": (
        lambda o: ours.ReduceLROnPlateau(o, nan_policy="x"),
        "nan_policy must be one of bad,",
    ),
    "empty chain": (lambda o: ours.ChainedScheduler([]), "at least one"),
    "no scheduler in a chain": (
        lambda o: ours.ChainedScheduler([None]),
        r"schedulers\[0\] must be a scheduler .got None",
    ),
    "chain of two optimizers": (
        lambda o: ours.ChainedScheduler([ours.ConstantLR(o, 1.0), ours.LinearLR(optimizer_of())]),
        r"schedulers\[1\] must belong to the same optimizer",
    ),
    "chain on another": (
        lambda o: ours.ChainedScheduler([ours.ConstantLR(o, 1.0)], optimizer_of()),
        r"schedulers\[0\] must belong to the same optimizer",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named_and_the_optimizer_left_as_it_was(name):
    build, message = BAD[name]
    optimizer = optimizer_of()
    groups = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ArgumentError, match=message):
        build(optimizer)
    lent = ("initial_lr",)  # where a scheduler was built before the one that was refused
    kept = [{k: v for k, v in g.items() if k not in lent} for g in optimizer.param_groups]
    assert kept == groups


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    ("before", "build"),
    [
        (lambda o: [], lambda o, made: ours.OneCycleLR(o, 1.0, 9, last_epoch=20)),
        (lambda o: [], lambda o, made: ours.LambdaLR(o, lambda t: {}[t])),
        (
            lambda o: [ours.OneCycleLR(o, 1.0, 5), ours.LinearLR(o)],
            lambda o, made: ours.SequentialLR(o, made, [20], 10),
        ),
        (
            lambda o: [ours.OneCycleLR(o, 1.0, 5), ours.LinearLR(o, last_epoch=30)],
            lambda o, made: ours.ChainedScheduler(made),
        ),
    ],
    ids=["one cycle", "lambda", "sequence", "chain"],
)
def test_a_constructor_that_raises_leaves_all_groups_as_they_were(before, build, tensor):
    lr = torch.tensor(0.5) if tensor else 0.5
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=lr)
    made = before(optimizer)
    kept = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((ArgumentError, KeyError)):
        build(optimizer, made)
    assert optimizer.state_dict() == kept
    assert (optimizer.param_groups[0]["lr"] is lr) or not tensor


def test_momentum_that_is_not_there_cannot_be_cycled():
    optimizer = torch.optim.Adagrad([torch.zeros(1, requires_grad=True)], lr=1.0)
    for build in (
        lambda: ours.CyclicLR(optimizer, 0.1, 1.0),
        lambda: ours.OneCycleLR(optimizer, 1, 9),
    ):
        with pytest.raises(ArgumentError, match="cycle_momentum must be False"):
            build()
    ours.CyclicLR(optimizer, 0.1, 1.0, cycle_momentum=False)


def optimizers_own_rates():
    """An optimizer of which the second group has no rate that a scheduler could move."""
    given, found = (torch.zeros(1, requires_grad=True) for _ in range(2))
    own = {"params": [given], "lr": 0.1, "relative_step": False}
    return TransformersAdafactor([own, {"params": [found]}])


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: ours.StepLR(optimizer, 1),
        lambda optimizer: ours.LambdaLR(optimizer, lambda t: 1.0),
        ours.ReduceLROnPlateau,
        lambda optimizer: ours.CyclicLR(optimizer, 0.1, 1.0, cycle_momentum=False),
        lambda optimizer: ours.OneCycleLR(optimizer, 1, 9, cycle_momentum=False),
        lambda optimizer: build_scheduler("cosine", optimizer, Horizon(9)),
    ],
)
def test_an_optimizer_that_finds_its_rate_by_itself_has_no_scheduler(build):
    optimizer = optimizers_own_rates()
    kept = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ArgumentError, match=r"with relative_step=False\), or leave the scheduler"):
        build(optimizer)
    assert optimizer.state_dict() == kept


@pytest.mark.parametrize("cls", [ours.LinearLR, ours.ConstantLR, ours.ReduceLROnPlateau])
def test_what_is_no_optimizer_is_refused(cls):
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        cls([])


def test_counts_and_numbers_may_come_from_numpy_and_are_saved_as_pythons():
    optimizer = optimizer_of()
    scheduler = ours.ChainedScheduler(
        [
            ours.LinearLR(optimizer, np.float32(0.5), np.float64(1.0), np.int64(5)),
            ours.OneCycleLR(
                optimizer, [np.float64(1.0), 1], np.int64(300), pct_start=np.float32(0.25)
            ),
            ours.MultiStepLR(optimizer, np.array([3, 7])),
            ours.CosineAnnealingLR(optimizer, np.int32(7), torch.tensor(0.5)),
            ours.LambdaLR(optimizer, lambda t: np.float64(0.5)),
        ]
    )
    trace(optimizer, scheduler, 3)
    assert saved(scheduler.state_dict()) == scheduler.state_dict()
    assert {type(lr) for lr in rates(optimizer)} == {float}
    assert saved(optimizer.state_dict())


class TestBadStep:
    def refused(self, optimizer, scheduler, message, *args, **kwargs):
        before = scheduler.state_dict(), [dict(group) for group in optimizer.param_groups]
        optimizer.step()
        with pytest.raises(ArgumentError, match=message):
            scheduler.step(*args, **kwargs)
        assert (scheduler.state_dict(), [dict(g) for g in optimizer.param_groups]) == before

    @pytest.mark.parametrize("epoch", [-1, 1.5, "x", True])
    def test_an_epoch_that_is_none(self, epoch):
        optimizer = optimizer_of()
        scheduler = ours.LinearLR(optimizer)
        self.refused(optimizer, scheduler, "epoch must be an int >= 0", epoch)

    @pytest.mark.parametrize("epoch", [-0.5, float("nan"), "x"])
    def test_an_epoch_of_restarts_that_is_none(self, epoch):
        optimizer = optimizer_of()
        scheduler = ours.CosineAnnealingWarmRestarts(optimizer, 3)
        self.refused(optimizer, scheduler, "epoch must be a finite number >= 0", epoch)

    @pytest.mark.parametrize("metrics", [None, "0.5", [1.0], torch.ones(2)])
    @pytest.mark.parametrize("name", ["plateau", "plateau first", "plateau in a chain"])
    def test_a_metric_that_is_none(self, name, metrics):
        optimizer = optimizer_of()
        scheduler = ALL[name](ours, optimizer)
        self.refused(optimizer, scheduler, "metrics must be a number", metrics)

    def test_a_metric_that_nobody_takes(self):
        optimizer = optimizer_of()
        scheduler = SEQUENCES["sequence"](ours, optimizer)
        self.refused(optimizer, scheduler, "metrics must be left out", 0.5)

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_step_past_the_end_of_one_cycle(self, nested):
        optimizer = optimizer_of()
        scheduler = ours.OneCycleLR(optimizer, 1.0, 7)
        if nested:
            scheduler = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.9), scheduler])
        trace(optimizer, scheduler, 7)
        self.refused(optimizer, scheduler, "total_steps = 7 must cover every step")

    @pytest.mark.parametrize("name", ["one cycle", "chain", "sequence"])
    def test_an_epoch_past_the_end_of_one_cycle(self, name):
        optimizer = optimizer_of()
        scheduler = ours.OneCycleLR(optimizer, 1.0, 7)
        if name == "chain":
            scheduler = ours.ChainedScheduler([ours.ExponentialLR(optimizer, 0.9), scheduler])
        if name == "sequence":
            scheduler = ours.SequentialLR(optimizer, [scheduler, ours.LinearLR(optimizer)], [20])
        self.refused(optimizer, scheduler, "total_steps = 7 must cover every step", epoch=9)

    def test_nan_under_the_policy_raise(self):
        optimizer = optimizer_of()
        scheduler = ours.ReduceLROnPlateau(optimizer, nan_policy="raise")
        self.refused(optimizer, scheduler, "metrics must not be NaN", float("nan"))


class TestBadState:
    def loads(self, build, state, message):
        optimizer = optimizer_of()
        scheduler = build(ours, optimizer)
        before = scheduler.state_dict(), rates(optimizer)
        with pytest.raises(StateError, match=message):
            scheduler.load_state_dict(state)
        assert (scheduler.state_dict(), rates(optimizer)) == before

    def test_of_another_class(self):
        state = SCALING["cosine"](ours, optimizer_of()).state_dict()
        self.loads(SCALING["linear"], state, "not of a LinearLR: missing .*'total_iters'")

    def test_of_another_number_of_groups(self):
        state = SCALING["linear"](ours, optimizer_of(lrs=(1.0,))).state_dict()
        self.loads(SCALING["linear"], state, "holds 1 groups, but the optimizer has 2")

    def test_of_a_sequence_of_another_length(self):
        state = SEQUENCES["sequence"](ours, optimizer_of()).state_dict()
        self.loads(SEQUENCES["sequence of three"], state, "2 schedulers, but this one has 3")

    def test_of_a_sequence_of_other_children(self):
        state = SEQUENCES["sequence"](ours, optimizer_of()).state_dict()
        state["_schedulers"].reverse()
        self.loads(SEQUENCES["sequence"], state, "not of a LinearLR")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("last_epoch", "x"), ("last_epoch", -5), ("last_epoch", True), ("last_epoch", 1.5), ("last_epoch", 3.0),
            ("base_lrs", ["x", "y"]), ("_last_lr", "xy"), ("_last_lr", [0.1]), ("total_iters", "x"),
            ("start_factor", None), ("_step_count", "x"),
        ],
    )  # fmt: skip
    def test_of_values_of_another_kind(self, key, value):
        state = {**SCALING["linear"](ours, optimizer_of()).state_dict(), key: value}
        self.loads(SCALING["linear"], state, key if value != [0.1] else "holds 1 groups")

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
        state = {**SEQUENCES["sequence"](ours, optimizer_of()).state_dict(), key: value}
        self.loads(SEQUENCES["sequence"], state, key)

    def test_of_a_class_with_the_same_keys(self):
        state = SCALING["multiplicative"](ours, optimizer_of()).state_dict()
        self.loads(ALL["lambda"], state, "is of a MultiplicativeLR, not of a LambdaLR")

    def test_of_torchs_other_class(self):
        state = torchs.ExponentialLR(optimizer_of(), 0.9).state_dict()
        self.loads(SCALING["step"], state, r"not of a StepLR: missing \['step_size'\]")

    @pytest.mark.parametrize(
        ("saved_with", "loaded_with"),
        [(Halving(3), lambda t: 1.0), (lambda t: 1.0, Halving(3))],
        ids=["an object", "a function"],
    )
    def test_of_another_kind_of_function(self, saved_with, loaded_with):
        for build in (
            lambda function: lambda m, o: m.LambdaLR(o, function),
            lambda function: lambda m, o: m.CyclicLR(o, 0.1, 1.0, scale_fn=function),
            lambda function: lambda m, o: m.SequentialLR(o, [m.LambdaLR(o, function)], []),
        ):
            state = build(saved_with)(ours, optimizer_of()).state_dict()
            self.loads(build(loaded_with), state, "must be what it was as the state was saved")

    def test_of_a_scale_fn_where_there_is_none(self):
        state = ALL["cyclic, scale_fn object"](ours, optimizer_of()).state_dict()
        self.loads(ALL["cyclic"], state, "_scale_fn_custom must be what it was")

    @pytest.mark.parametrize("name", ALL)
    def test_of_another_number_of_groups_whatever_the_scheduler(self, name):
        if "two" in name or name == "plateau, min abs":
            state = ALL[name](ours, optimizer_of()).state_dict()
            state["_last_lr"] = state["_last_lr"][:1]
        else:
            state = ALL[name](ours, optimizer_of(lrs=(1.0,))).state_dict()
        self.loads(ALL[name], state, "holds 1 groups, but the optimizer has 2")

    def test_of_lists_that_do_not_fit_the_groups(self):
        for key, value in (("max_lrs", [1.0] * 3), ("max_lrs", []), ("base_momentums", ["x"])):
            state = {**ALL["cyclic"](ours, optimizer_of()).state_dict(), key: value}
            self.loads(ALL["cyclic"], state, "groups|base_momentums")

    @pytest.mark.parametrize("state", [None, [], 3])
    @pytest.mark.parametrize("name", ["linear", "sequence", "plateau"])
    def test_of_no_dict(self, name, state):
        self.loads(ALL[name], state, "a state must be a dict")

    @pytest.mark.parametrize(
        ("name", "key", "value"),
        [
            ("linear", "_last_lr", [0.1, None]), ("linear", "_last_lr", [0.1, float("nan")]),
            ("linear", "base_lrs", [None, 0.1]), ("linear", "base_lrs", [None, None]),
            ("linear", "base_lrs", [0.1, -1.0]), ("linear", "total_iters", -1),
            ("linear", "total_iters", 1.5), ("linear", "_step_count", -1),
            ("cyclic", "_last_momentum", [0.1, "x"]), ("cyclic", "_last_momentum", [0.1] * 3),
            ("cyclic", "_last_momentum", [0.1, -0.1]), ("cyclic", "mode", "square"),
            ("cyclic", "max_lrs", [0.1, None]), ("cyclic", "scale_mode", "x"),
            ("cosine", "T_max", 0), ("step", "step_size", 0), ("restarts", "T_mult", 0),
            ("multistep", "milestones", [9, 3]), ("sequence", "_milestones", [-1]),
            ("one cycle", "total_steps", 0), ("one cycle", "_anneal_func_type", "x"),
            ("plateau", "mode", "least"), ("plateau", "nan_policy", "x"),
            ("plateau", "patience", -1), ("plateau", "threshold_mode", "x"),
        ],
    )  # fmt: skip
    def test_of_values_that_nothing_could_have_saved(self, name, key, value):
        state = {**ALL[name](ours, optimizer_of()).state_dict(), key: value}
        self.loads(ALL[name], state, key)

    def test_of_momentum_where_there_is_none(self):
        optimizer = torch.optim.Adagrad([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = ours.LinearLR(optimizer)
        before = scheduler.state_dict()
        with pytest.raises(StateError, match="_last_momentum, but there are 0 groups"):
            scheduler.load_state_dict({**before, "_last_lr": [0.7], "_last_momentum": [0.9]})
        assert scheduler.state_dict() == before

    def test_of_momentum_of_another_group(self):
        apart = [{"params": [torch.zeros(1, requires_grad=True)], "lr": 1.0} for _ in "12"]
        groups = [{**apart[0], "optimizer": "SGD"}, {**apart[1], "optimizer": "Adagrad"}]
        scheduler = ours.LinearLR(MultiOptimizer(groups))
        before = scheduler.state_dict()
        with pytest.raises(StateError, match="a momentum of group 1 in _last_momentum"):
            scheduler.load_state_dict({**before, "_last_momentum": [None, 0.9]})
        assert scheduler.state_dict() == before

    @pytest.mark.parametrize("function", [partial(max, 1), len, Halving(3).__call__, object])
    def test_of_an_object_where_there_is_a_function_without_attributes(self, function):
        state = ours.LambdaLR(optimizer_of(), Halving(3)).state_dict()
        scheduler = ours.MultiplicativeLR(optimizer_of(), function)
        state["_class"] = "MultiplicativeLR"
        with pytest.raises(StateError, match="must be what it was as the state was saved"):
            scheduler.load_state_dict(state)

    def test_the_state_itself_is_left_as_it_was(self):
        state = ALL["cyclic"](ours, optimizer_of()).state_dict()
        kept = copy.deepcopy(state)
        scheduler = ALL["cyclic"](ours, optimizer_of())
        for _ in range(2):
            scheduler.load_state_dict(state)
        assert state == kept


def test_every_state_is_made_of_primitives():
    def leaves(value):
        if isinstance(value, dict):
            # Of milestones torch keeps how often each is there.
            assert {type(key) for key in value} <= {int if isinstance(value, Counter) else str}
            return [leaf for item in value.values() for leaf in leaves(item)]
        if isinstance(value, list):
            return [leaf for item in value for leaf in leaves(item)]
        return [value]

    for build in ALL.values():
        state = build(ours, optimizer_of()).state_dict()
        assert saved(state) == state
        assert {type(leaf) for leaf in leaves(state)} <= {str, int, float, bool, type(None)}
