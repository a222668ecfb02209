"""Several optimizers in one: each moves its parameters as it would alone."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from support.labels import label
from support.optimizers import MULTI, Nudged
from support.references import flat
from support.tensors import parameters, same_bits

from optimplug import ArgumentError, GradientError, ModeError, StateError
from optimplug.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    MultiOptimizer,
    Muon,
    Optimizer,
    Prodigy,
    ScheduleFreeSGD,
    SparseAdam,
    TransformersAdafactor,
    lr_scheduler,
)

SHAPES = ((3, 4), (7,), (5, 5, 2), (4, 3), ())
# Of the two optimizers no shape is the same: in a batch of matrices rounding depends on their count.
MATRICES = ((3, 4), (3, 4), (5, 5), (2, 6), (2, 6))


def paired(pairs):
    return [pytest.param(a, b, id=f"{a[0].__name__}-{b[0].__name__}") for a, b in pairs]


PAIRS = paired(
    (one, other)
    for one, other in itertools.combinations_with_replacement(MULTI.items(), 2)
    if (one[0], other[0]) != (Prodigy, Prodigy)  # whose groups of one rate have one scale
)
# Each beside one other: enough where it does not matter beside which.
NEIGHBOURS = paired(itertools.pairwise([*MULTI.items(), next(iter(MULTI.items()))]))


def parameters_of(*optimizers):
    return parameters(MATRICES if Muon in [cls for cls, _ in optimizers] else SHAPES)


def in_one(one, other, **whole):
    params = parameters_of(one, other)
    groups = zip((one, other), (params[:3], params[3:]), strict=True)
    optimizer = MultiOptimizer(
        [{"params": ps, "optimizer": cls, **own} for (cls, own), ps in groups], **whole
    )
    optimizer.train()  # schedule-free ones begin in neither mode
    return optimizer


def gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(p.shape, generator=generator) if (step + i) % 5 else None
        for i, p in enumerate(params)
    ]


def apart(one, other, steps, clip=None, **choice):
    """The same by two optimizers, with one clipping over the gradients of both."""
    params = parameters_of(one, other)
    optimizers = [
        cls(ps, **own, **choice)
        for (cls, own), ps in zip((one, other), (params[:3], params[3:]), strict=True)
    ]
    for optimizer in optimizers:
        optimizer.train()
    for step in range(steps):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params, clip)
        for optimizer in optimizers:
            optimizer.step()
    return params


def together(optimizer, steps, start=0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, start + steps):
        for p, g in zip(params, gradients(params, step), strict=True):
            p.grad = g
        optimizer.step()
    return params


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_in_one_are_the_two_apart_bit_for_bit(one, other):
    assert all(map(same_bits, together(in_one(one, other), 8), apart(one, other, 8)))


@pytest.mark.parametrize("choice", [{"foreach": True}, {"foreach": False}], ids=label)
@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_they_are_so_however_all_are_run(one, other, choice):
    ours = together(in_one(one, other, **choice), 8)
    assert all(map(same_bits, ours, apart(one, other, 8, **choice)))


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_clipping_is_one_over_the_gradients_of_all(one, other):
    ours = together(in_one(one, other, max_grad_norm=0.5, foreach=False), 8)
    theirs = apart(one, other, 8, clip=0.5, foreach=False)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
@pytest.mark.parametrize("how", ["state_dict", "weights_only", "deepcopy", "pickle"])
def test_a_run_goes_on_exactly(one, other, how):
    whole = together(in_one(one, other), 6)
    first = in_one(one, other)
    together(first, 3)
    if how == "deepcopy":
        again = copy.deepcopy(first)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(first))  # noqa: S301 (its own)
    else:
        state = first.state_dict()
        if how == "weights_only":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        again = in_one(one, other)
        with torch.no_grad():
            for group, saved in zip(again.param_groups, first.param_groups, strict=True):
                for p, q in zip(group["params"], saved["params"], strict=True):
                    p.copy_(q)
        again.load_state_dict(state)
    assert all(map(same_bits, together(again, 3, start=3), whole))


def test_one_that_finds_its_rate_by_itself_goes_on_beside_another():
    own, other = (TransformersAdafactor, {}), (AdamW, {"lr": 0.01})
    whole = together(in_one(own, other), 6)
    assert all(map(same_bits, whole, apart(own, other, 6)))
    first, again = in_one(own, other), in_one(own, other)
    with torch.no_grad():
        for p, q in zip(flat(again), together(first, 3), strict=True):
            p.copy_(q)
    again.load_state_dict(first.state_dict())
    assert [group["lr"] for group in again.param_groups] == [None, 0.01]
    assert all(map(same_bits, together(again, 3, start=3), whole))


@pytest.fixture
def group():
    return {"params": [torch.zeros(2, requires_grad=True)]}


class OwnStep(AdamW):
    def step(self, closure=None):
        return super().step(closure)


REFUSED = {
    "no optimizer": ({}, "optimizer is required in every group"),
    "misspelt": ({"optimizer": "AdamX"}, "no optimizer 'AdamX'; did you mean 'Adamax'"),
    "no such path": ({"optimizer": "torch.optim.Nothing"}, "has no attribute 'Nothing'"),
    "no class": ({"optimizer": 3}, r"or its class \(got 3\)"),
    "torch's": ({"optimizer": "torch.optim.AdamW"}, "cannot be one of several.*write 'AdamW'"),
    "in itself": ({"optimizer": MultiOptimizer}, "cannot be one of several"),
    "the base": ({"optimizer": Optimizer}, "cannot be one of several"),
    "closures": ({"optimizer": "LBFGS"}, "its step is more than an update of each parameter"),
    "own step": ({"optimizer": OwnStep}, "its step is more than an update of each parameter"),
    "another's key": (
        {"optimizer": "Lion", "eps": 1e-8},
        "Lion has no 'eps'; valid are: betas, lr, maximize, rounding, "
        "rounding_seed, state_dtype, weight_decay",
    ),
    "misspelt key": (
        {"optimizer": "Lion", "weigth_decay": 0.1},
        "Lion has no 'weigth_decay'; did you mean 'weight_decay'",
    ),
    "bad value": ({"optimizer": "AdamW", "lr": -1.0}, "AdamW: Invalid learning rate: -1.0"),
    "clips alone": ({"optimizer": "AdamW", "max_grad_norm": 1.0}, "for the whole optimizer"),
    "runs alone": ({"optimizer": "AdamW", "foreach": True}, "a choice for all groups together"),
}


@pytest.mark.parametrize(("bad", "message"), REFUSED.values(), ids=REFUSED)
def test_a_group_that_cannot_be_is_refused_and_nothing_changes(bad, message, group):
    added = {"params": [torch.zeros(2, requires_grad=True)], "name": "mine", **bad}
    before = dict(added)
    optimizer = MultiOptimizer([{**group, "optimizer": "Adagrad"}])
    with pytest.raises(ArgumentError, match=rf"^param_groups\[1\] \('mine'\): .*{message}"):
        optimizer.add_param_group(added)
    assert added == before
    assert (len(optimizer.param_groups), len(optimizer.state)) == (1, 1)


def test_a_class_that_no_state_could_name_is_refused(group):
    class Local(AdamW):
        pass

    with pytest.raises(ArgumentError, match="define it at the top of a module"):
        MultiOptimizer([{**group, "optimizer": Local}])


@pytest.mark.parametrize(
    ("choice", "other"), [({"fused": True}, "Lion"), ({"capturable": True}, "Muon")], ids=label
)
def test_a_choice_that_an_optimizer_lacks_is_refused(choice, other, group):
    with pytest.raises(ArgumentError, match=f"{other} has no such argument"):
        MultiOptimizer([{**group, "optimizer": other, "lr": 0.1}], **choice)


def test_each_group_has_its_own_optimizers_settings(group):
    optimizer = MultiOptimizer(
        [
            {**group, "optimizer": "Lion", "name": "mine"},
            {"params": [("w", torch.zeros(1, requires_grad=True))][0][1], "optimizer": Adam},
        ]
    )
    lion, adam = optimizer.param_groups
    for found, alone in (
        (lion, Lion([torch.zeros(1, requires_grad=True)])),
        (adam, Adam([adam["params"][0]])),
    ):
        assert (
            found.items()
            >= {k: v for k, v in alone.param_groups[0].items() if k != "params"}.items()
        )
    assert (lion["optimizer"], adam["optimizer"], lion["name"]) == ("Lion", "Adam", "mine")
    assert "eps" not in lion


def test_names_of_parameters_are_kept():
    p, q = parameters(((2,), (3,)))
    optimizer = MultiOptimizer(
        [
            {"params": [("p", p)], "optimizer": "Lion"},
            {"params": iter([("q", q)]), "optimizer": "SGD", "lr": 0.1},
        ]
    )
    assert [group["param_names"] for group in optimizer.param_groups] == [["p"], ["q"]]


def test_a_derived_class_is_known_by_its_path(group):
    optimizer = MultiOptimizer([{**group, "optimizer": Nudged}])
    path = "support.optimizers.Nudged"
    assert optimizer.param_groups[0]["optimizer"] == path
    again = MultiOptimizer([{**group, "optimizer": path}])
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups == optimizer.param_groups


def test_all_run_fused_where_that_is_asked_for():
    one, other = (AdamW, {"lr": 0.01}), (SGD, {"lr": 0.1, "momentum": 0.5})
    ours = together(in_one(one, other, fused=True), 5)
    assert all(map(same_bits, ours, apart(one, other, 5, fused=True)))


def test_autograd_flows_through_the_step_of_each():
    rate = torch.tensor(0.5, requires_grad=True)
    leaves = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = MultiOptimizer(
        [
            {"params": [leaf], "optimizer": name, "lr": rate}
            for leaf, name in zip(leaves, ("SGD", "Lion"), strict=True)
        ],
        differentiable=True,
    )
    for group in optimizer.param_groups:  # a leaf may not change in place
        group["params"] = [group["params"][0].clone()]
        group["params"][0].grad = torch.ones(2)
    optimizer.step()
    sum(group["params"][0].sum() for group in optimizer.param_groups).backward()
    assert rate.grad == -4.0
    assert all(torch.equal(leaf.grad, torch.ones(2)) for leaf in leaves)


def test_a_group_that_joins_later_has_its_optimizer():
    one, other = (Lion, {"lr": 0.01}), (Adagrad, {"lr": 0.1})
    whole = in_one(one, other)
    params = parameters(SHAPES)
    grown = MultiOptimizer([{"params": params[:3], "optimizer": "Lion", "lr": 0.01}])
    grown.add_param_group({"params": params[3:], "optimizer": "Adagrad", "lr": 0.1})
    assert all(map(same_bits, together(grown, 4), together(whole, 4)))


def test_the_norm_that_is_not_finite_leaves_all_out():
    optimizer = in_one((Lion, {"lr": 0.1}), (AdamW, {"lr": 0.1}), skip_nonfinite=True)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    params[0].grad.fill_(float("inf"))
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(map(same_bits, params, before))


def test_a_sparse_gradient_is_judged_by_its_groups_optimizer():
    def run(sparse):
        table, weight = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
        optimizer = MultiOptimizer(
            [
                {"params": [table], "optimizer": sparse, "lr": 0.1},
                {"params": [weight], "optimizer": "AdamW"},
            ]
        )
        table.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=True)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return table

    assert (run("SGD") != 1).sum() == 2
    with pytest.raises(GradientError, match="must be dense"):
        run("Lion")


def test_the_modes_are_those_of_the_groups_that_have_them():
    optimizer = in_one((ScheduleFreeSGD, {"lr": 0.1}), (AdamW, {"lr": 0.1}))
    first, *_, last = together(optimizer, 3)
    trained = [first.detach().clone(), last.detach().clone()]
    assert optimizer.has_modes
    optimizer.eval()
    assert not torch.equal(first, trained[0])
    assert torch.equal(last, trained[1])
    with pytest.raises(ModeError, match=r"param_groups\[0\] is in eval mode"):
        optimizer.step()
    optimizer.train()
    torch.testing.assert_close(first, trained[0])
    assert not in_one((Lion, {}), (AdamW, {})).has_modes


def test_sparse_adam_moves_what_its_gradient_holds_beside_others():
    def run(multi):
        table, weight = (torch.ones(3, 2, requires_grad=True) for _ in range(2))
        if multi:
            groups = [
                {"params": [table], "optimizer": "SparseAdam"},
                {"params": [weight], "optimizer": "AdamW"},
            ]
            optimizers = [MultiOptimizer(groups)]
        else:
            optimizers = [SparseAdam([table]), AdamW([weight])]
        for _ in range(3):
            table.grad = torch.sparse_coo_tensor(
                [[1]], torch.ones(1, 2), (3, 2), check_invariants=True
            )
            weight.grad = torch.ones_like(weight)
            for optimizer in optimizers:
                optimizer.step()
        return table, weight

    assert all(map(same_bits, run(True), run(False)))


LOADS = {
    ("Adam", "AdamW"): None,
    ("AdamW", "Adam"): None,
    ("AdamW", "Lion"): "was saved by AdamW, whose state means nothing to Lion",
    ("SGD", "Lion"): "was saved by SGD",
    (None, "AdamW"): "names no optimizer",
}


@pytest.mark.parametrize(("saved", "own"), LOADS, ids=str)
def test_a_state_is_loaded_where_it_means_the_same(saved, own, group):
    def state_of(name):
        return MultiOptimizer([{**group, "optimizer": name, "lr": 0.5}]).state_dict()

    state = state_of(saved or own)
    if saved is None:
        del state["param_groups"][0]["optimizer"]
    optimizer = MultiOptimizer([{**group, "optimizer": own, "lr": 0.1}])
    message = LOADS[saved, own]
    if message is None:
        optimizer.load_state_dict(state)
        (found,) = optimizer.param_groups
        assert (found["lr"], found["optimizer"]) == (0.5, own)
    else:
        before = copy.deepcopy(optimizer.param_groups)
        with pytest.raises(StateError, match=rf"param_groups\[0\]: {message}"):
            optimizer.load_state_dict(state)
        assert optimizer.param_groups[0].keys() == before[0].keys()
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_adamw_stays_adamw_with_adams_state(group):
    state = MultiOptimizer([{**group, "optimizer": "Adam"}]).state_dict()
    optimizer = MultiOptimizer([{**group, "optimizer": "AdamW"}])
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_what_an_older_state_lacks_is_the_optimizers_default(group):
    optimizer = MultiOptimizer([{**group, "optimizer": "Lion", "weight_decay": 0.5}])
    state = optimizer.state_dict()
    del state["param_groups"][0]["betas"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_momentum_cycles_where_a_group_has_it(name):
    def build(*optimizers):
        groups = zip(optimizers, parameters(((2,),) * len(optimizers)), strict=True)
        optimizer = MultiOptimizer(
            [{"params": [p], "optimizer": own, "lr": 0.1} for own, p in groups]
        )
        options = {
            "OneCycleLR": {"total_steps": 10},
            "CyclicLR": {"base_lr": 0.1, "step_size_up": 3},
        }
        scheduler = getattr(lr_scheduler, name)(optimizer, max_lr=0.5, **options[name])
        trace = []
        for _ in range(8):
            optimizer.step()
            scheduler.step()
            trace.append([g.get("momentum", g.get("betas")) for g in optimizer.param_groups])
        return optimizer, scheduler, trace

    optimizer, scheduler, trace = build("SGD", "Adagrad", "AdamW")
    for sgd, adagrad, (beta, same) in trace:
        assert (sgd, adagrad, same) == (pytest.approx(beta), None, 0.999)
    assert len({sgd for sgd, *_ in trace}) > 2
    assert "momentum" not in optimizer.param_groups[1]
    before = copy.deepcopy(optimizer.param_groups)
    state = scheduler.state_dict()
    scheduler.step()
    scheduler.load_state_dict(state)
    for found, held in zip(optimizer.param_groups, before, strict=True):
        assert {k: v for k, v in found.items() if k != "params"} == {
            k: v for k, v in held.items() if k != "params"
        }
    with pytest.raises(ArgumentError, match="cycle_momentum must be False"):
        build("Adagrad")


def test_a_gradient_scaler_unscales_for_all():
    def run(scaled):
        optimizer = in_one((Lion, {"lr": 0.01}), (AdamW, {"lr": 0.01}), max_grad_norm=0.5)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step in range(3):
            optimizer.zero_grad()
            loss = sum(((p + step) ** 2).sum() for p in params)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return params

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
