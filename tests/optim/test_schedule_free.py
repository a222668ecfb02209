"""Schedule-free optimizers against the package that has them, and their two modes."""

import copy
import io
import pickle

import pytest
import schedulefree
import torch
from support.labels import label
from support.tensors import descend, parameters, same_bits
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optimplug import ArgumentError, ModeError, StateError
from optimplug.optim import AdamW, MultiOptimizer, ScheduleFreeAdamW, ScheduleFreeSGD

ADAMW = [
    {},
    {"lr": 1e-2, "betas": (0.95, 0.99), "eps": 1e-3, "weight_decay": 0.1, "warmup_steps": 20},
    {"lr": 1e-2, "warmup_steps": 150, "r": 2.0, "weight_lr_power": 0.0},
]
SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.1, "warmup_steps": 20},
    {"lr": 0.1, "warmup_steps": 150, "r": 1.0, "weight_lr_power": 1.0},
]
THEIRS = {
    ScheduleFreeAdamW: schedulefree.AdamWScheduleFree,
    ScheduleFreeSGD: schedulefree.SGDScheduleFree,
}
CASES = [(ScheduleFreeAdamW, o) for o in ADAMW] + [(ScheduleFreeSGD, o) for o in SGD]
EXECUTIONS = [{}, {"foreach": True}, {"foreach": False}, {"differentiable": True}]
CLASSES = pytest.mark.parametrize("cls", THEIRS, ids=label)


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def groups(params):
    """Several groups, each with a rate and a warm-up of its own."""
    return [
        {"params": params[:2], "lr": 1e-2, "weight_decay": 0.0},
        {"params": params[2:3], "lr": 3e-3, "warmup_steps": 7},
        {"params": params[3:]},
    ]


def leaves(execution):
    # Autograd allows no change in place of what requires gradients itself.
    differentiable = execution.get("differentiable")
    return [p.detach() if differentiable else p for p in parameters()]


def trained(optimizer, steps=10, seed=2):
    optimizer.train()
    return descend(optimizer, steps, seed=seed)


def run_with_switches(optimizer):
    """Train for 100 steps, look at the average now and then; return all that was seen."""
    seen = []
    for seed in range(10):
        seen += trained(optimizer, seed=seed)
        optimizer.eval()
        seen += [p.detach().clone() for p in flat(optimizer)]
    return seen


def assert_close(ours, theirs, rtol=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7)


COUNTED = ("k", "lr_max", "weight_sum", "scheduled_lr", "train_mode")


def counted(optimizer):
    return [{key: group[key] for key in COUNTED} for group in optimizer.param_groups]


@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_every_execution_is_the_reference(cls, options, execution):
    ours = cls(groups(leaves(execution)), **options, **execution)
    theirs = THEIRS[cls](groups(parameters()), **options)
    assert_close(run_with_switches(ours), run_with_switches(theirs))
    assert counted(ours) == counted(theirs)


@CLASSES
def test_arguments_and_defaults_are_the_references(cls):
    def settings(optimizer):
        group = dict(optimizer.param_groups[0])
        return {k: group[k] for k in group.keys() - {"params", "foreach"}}

    ours, theirs = settings(cls(parameters())), settings(THEIRS[cls](parameters()))
    assert ours == {**theirs, "maximize": False, "differentiable": False}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("loads", ["ours", "theirs"])
@CLASSES
def test_states_load_both_ways(cls, loads, mode):
    classes = (cls, THEIRS[cls]) if loads == "ours" else (THEIRS[cls], cls)
    here, there = (c(groups(parameters()), lr=1e-2) for c in classes)
    trained(there)
    getattr(there, mode)()
    here.load_state_dict(copy.deepcopy(there.state_dict()))
    for p, q in zip(flat(here), flat(there), strict=True):
        p.data.copy_(q.data)
    assert counted(here) == counted(there)
    assert_close(run_with_switches(here), run_with_switches(there))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("execution", EXECUTIONS[:3], ids=label)
@CLASSES
def test_a_run_resumes_bit_for_bit(cls, execution, mode):
    whole = cls(groups(parameters()), lr=1e-2, **execution)
    trained(whole)
    getattr(whole, mode)()
    resumed = cls(groups([nn.Parameter(p.detach().clone()) for p in flat(whole)]), **execution)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert counted(resumed) == counted(whole)
    assert all(map(same_bits, run_with_switches(resumed), run_with_switches(whole)))


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 - our own


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("mode", ["train", "eval"])
@CLASSES
def test_a_copy_goes_on_by_itself(cls, mode, copied):
    whole = cls(groups(parameters()), lr=1e-2)
    trained(whole)
    getattr(whole, mode)()
    other = copied(whole)
    ends = run_with_switches(whole)
    assert all(map(same_bits, run_with_switches(other), ends))


def test_a_state_that_lacks_a_part_is_refused():
    optimizer = ScheduleFreeAdamW(parameters(), lr=1e-2)
    trained(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    del state["state"][1]["z"]
    with pytest.raises(StateError, match="must have z"):
        ScheduleFreeAdamW(parameters()).load_state_dict(state)


@pytest.mark.parametrize("bad", ["x", -2, float("nan"), None])
@pytest.mark.parametrize("key", ["k", "weight_sum"])
def test_a_state_that_has_counted_nonsense_is_refused(key, bad):
    state = ScheduleFreeAdamW(parameters()).state_dict()
    state["param_groups"][0][key] = bad
    with pytest.raises(StateError, match=rf"param_groups\[0\]: {key} must be"):
        ScheduleFreeAdamW(parameters()).load_state_dict(state)


@CLASSES
def test_a_group_counts_from_its_first_gradient_on(cls):
    def added(start):
        params = parameters()
        optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], lr=1e-2, warmup_steps=9)
        optimizer.train()
        for step in range(20):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, step + 1.0) if i < 2 or step >= start else None
            optimizer.step()
        return params[2:], optimizer.param_groups[1]

    def alone():
        params = parameters()[2:]
        optimizer = THEIRS[cls](params, lr=1e-2, warmup_steps=9)
        optimizer.train()
        for step in range(12, 20):
            for p in params:
                p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()
        return params

    params, group = added(start=12)
    assert group["k"] == 8
    assert_close(params, alone())


class TestModes:
    @CLASSES
    def test_a_step_in_eval_mode_is_refused_and_changes_nothing(self, cls):
        optimizer = cls(groups(parameters()), lr=1e-2)
        forgotten = r"param_groups\[0\] is in eval mode.*call optimizer.train\(\) before step\(\)"
        with pytest.raises(ModeError, match=forgotten):
            descend(optimizer, 1)
        assert not optimizer.state
        trained(optimizer)
        optimizer.eval()
        before = copy.deepcopy(optimizer.state_dict()), [p.clone() for p in flat(optimizer)]
        with pytest.raises(ModeError, match=forgotten):
            optimizer.step(lambda: pytest.fail("the closure was called"))
        after = optimizer.state_dict(), flat(optimizer)
        torch.testing.assert_close(before, after, rtol=0, atol=0)

    @CLASSES
    def test_the_mean_of_what_has_moved_is_what_is_validated(self, cls):
        # With equal weights, x is the mean of all z.
        (p,) = params = parameters([(4, 3)])
        optimizer, seen = cls(params, lr=0.05, weight_lr_power=0.0), []
        for seed in range(20):
            optimizer.train()
            descend(optimizer, 1, skip=False, seed=seed)
            seen.append(optimizer.state[p]["z"].double())
            optimizer.eval()
        torch.testing.assert_close(p.detach().double(), sum(seen) / len(seen), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
    @CLASSES
    def test_to_switch_twice_is_to_be_where_it_was(self, cls, dtype):
        optimizer = cls(parameters(dtype=dtype), lr=1e-2)
        before = trained(optimizer, 5)
        optimizer.eval()
        moved = [p.detach().clone() for p in flat(optimizer)]
        optimizer.eval()
        assert all(map(torch.equal, moved, flat(optimizer)))
        assert not all(map(torch.equal, moved, before))
        optimizer.train()
        for p, b in zip(flat(optimizer), before, strict=True):
            torch.testing.assert_close(p.detach(), b)

    def test_a_state_of_another_type_takes_no_harm(self):
        (p,) = params = parameters([(4, 3)], dtype=torch.bfloat16)
        optimizer = ScheduleFreeSGD(params, lr=1e-2)
        trained(optimizer, 3)
        optimizer.state[p]["z"] = optimizer.state[p]["z"].float()
        optimizer.eval()
        assert (p.dtype, optimizer.state[p]["z"].dtype) == (torch.bfloat16, torch.float32)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @CLASSES
    def test_an_added_group_is_in_the_mode_of_the_others(self, cls, mode):
        params = parameters()
        optimizer = cls(params[:2], lr=1e-2)
        trained(optimizer)
        getattr(optimizer, mode)()
        optimizer.add_param_group({"params": params[2:], "train_mode": mode == "eval"})
        assert [g["train_mode"] for g in optimizer.param_groups] == [mode == "train"] * 2
        y = trained(optimizer)
        optimizer.eval()
        assert not any(map(torch.equal, y, flat(optimizer)))

    def test_groups_of_the_reference_in_different_modes_come_together(self):
        theirs = schedulefree.SGDScheduleFree(parameters()[:2], lr=1e-2)
        trained(theirs)
        theirs.add_param_group({"params": parameters()[2:]})  # in eval mode, as it begins
        ours = ScheduleFreeSGD([{"params": parameters()[:2]}, {"params": parameters()[2:]}])
        ours.load_state_dict(theirs.state_dict())
        with pytest.raises(ModeError, match=r"param_groups\[1\]"):
            descend(ours, 1)
        trained(ours)

    @CLASSES
    def test_a_skipped_step_counts_nothing(self, cls):
        optimizer = cls(parameters(), lr=1e-2, skip_nonfinite=True)
        optimizer.train()
        for wrong in (False, True):
            before = counted(optimizer)
            for p in flat(optimizer):
                p.grad = torch.full_like(p, float("inf") if wrong else 1.0)
            optimizer.step()
            assert (counted(optimizer) == before) is wrong
        assert optimizer.param_groups[0]["k"] == 1

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @CLASSES
    def test_the_step_that_makes_state_for_a_checkpoint_moves_nothing(self, cls, mode):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        before = copy.deepcopy(model.state_dict())
        optimizer = cls(model.parameters(), lr=1e-2)
        getattr(optimizer, mode)()
        found = get_optimizer_state_dict(model, optimizer)
        assert found["state"]["weight"]["z"].shape == (2, 3)
        optimizer.eval()
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    @pytest.mark.parametrize("mode", ["train", "eval"])
    @pytest.mark.parametrize("flat", [False, True])
    def test_a_distributed_checkpoint_brings_all_back(self, mode, flat):
        def made():
            torch.manual_seed(0)
            model = nn.Linear(3, 2)
            return model, ScheduleFreeAdamW(model.parameters(), lr=1e-2)

        (model, whole), (other, resumed) = made(), made()
        trained(whole)
        getattr(whole, mode)()
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        state = copy.deepcopy(get_optimizer_state_dict(model, whole, options=options))
        other.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other, resumed, state, options=options)
        assert counted(resumed) == counted(whole)
        assert all(map(same_bits, run_with_switches(resumed), run_with_switches(whole)))

    def test_optimizers_without_modes_take_the_calls(self):
        optimizer = AdamW(parameters())
        before = descend(optimizer, 2)
        optimizer.eval()
        optimizer.train()
        assert all(map(torch.equal, before, flat(optimizer)))
        assert not optimizer.has_modes
        assert ScheduleFreeSGD(parameters()).has_modes


def test_beside_others_in_one_optimizer_each_does_as_alone():
    kinds = [(ScheduleFreeAdamW, {"warmup_steps": 5}), (AdamW, {}), (ScheduleFreeSGD, {})]
    shapes = [(3, 4), (7,), (2, 2)]
    together, params = parameters(shapes), parameters(shapes)
    apart = [cls([p], lr=0.01, **own) for (cls, own), p in zip(kinds, params, strict=True)]
    whole = MultiOptimizer(
        {"params": [p], "optimizer": cls, "lr": 0.01, **own}
        for (cls, own), p in zip(kinds, together, strict=True)
    )
    assert whole.has_modes
    with pytest.raises(ModeError, match=r"param_groups\[0\] is in eval mode"):
        descend(whole, 1)
    for step in range(12):
        for optimizer in (whole, *apart):
            optimizer.train()
        for p, q in zip(together, params, strict=True):
            p.grad = torch.full_like(p, step - 5.0)
            q.grad = p.grad.clone()
        for optimizer in (whole, *apart):
            optimizer.step()
        for optimizer in (whole, *apart):
            optimizer.eval()
        assert all(map(same_bits, together, params))
    added = {"params": parameters([(2,)]), "optimizer": "ScheduleFreeSGD", "train_mode": True}
    whole.add_param_group(added)
    assert [g.get("train_mode") for g in whole.param_groups] == [False, None, False, False]


WRONG = [
    (ScheduleFreeAdamW, {"betas": (0.0, 0.999)}, r"index 0: 0.*in \(0, 1\)"),
    (ScheduleFreeAdamW, {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
    (ScheduleFreeAdamW, {"eps": -1.0}, "epsilon value: -1.0"),
    (ScheduleFreeAdamW, {"warmup_steps": -1}, "Invalid warmup_steps: -1"),
    (ScheduleFreeAdamW, {"weight_lr_power": -1.0}, "weight_lr_power value"),
    (ScheduleFreeSGD, {"momentum": 0.0}, "momentum value: 0.0; must be between 0 and 1 exclusive"),
    (ScheduleFreeSGD, {"momentum": 1.0}, "momentum value: 1.0"),
    (ScheduleFreeSGD, {"lr": -1.0}, "Invalid learning rate: -1.0"),
    (ScheduleFreeSGD, {"weight_decay": -1.0}, "weight_decay value: -1.0"),
]


@pytest.mark.parametrize(("cls", "wrong", "message"), WRONG, ids=label)
def test_wrong_arguments_are_refused(cls, wrong, message):
    with pytest.raises(ArgumentError, match=message):
        cls(parameters(), **wrong)
