"""Which parameters step together, and what is refused before any of them does."""

from collections import defaultdict

import pytest
import torch
from support.labels import label
from support.optimizers import TABLE
from torch.multiprocessing.reductions import StorageWeakRef

import optimplug.optim
from optimplug import ArgumentError
from optimplug._core.optim.executions.choice import prepare
from optimplug._core.optim.rule import Rule, StateSpec
from optimplug._core.optim.rules.sgd import SGDRule
from optimplug._core.optim.step.counters import CountOn
from optimplug._core.optim.step.layout import Layout
from optimplug.optim import SGD, Adafactor, Adagrad, AdamW, Rprop

SGD_SETTINGS = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}


class Whole(Rule):
    """A rule that divides by the norm of a tensor, and so must see all of it."""

    scope = "tensor"
    state = (StateSpec("rows", over=-1, keeps_axis=False, dtype=torch.float64),)

    def coefficients(self, hyper, t):
        return {"lr": 0.1}

    def update(self, p, g, state, k):
        p.add_(g, alpha=-k["lr"])


def laid_out(p, rule, state):
    return Layout([{"params": [p]}], [torch.ones_like(p)], [rule], state, count_on=CountOn())


def test_a_state_may_have_a_shape_and_a_type_of_its_own():
    p, state = torch.nn.Parameter(torch.ones(3, 4)), defaultdict(dict)
    laid_out(p, Whole(), state)
    assert state[p]["rows"].shape == (3,)
    assert state[p]["rows"].dtype == torch.float64


def test_a_flat_shard_is_refused_where_the_whole_is_needed():
    p, state = torch.nn.Parameter(torch.ones(3, 4)), defaultdict(dict)
    p._fsdp_flattened = True  # as FSDP's first version marks what it has flattened
    with pytest.raises(ArgumentError, match="Whole must see a whole tensor at once"):
        laid_out(p, Whole(), state)
    assert not state


def test_a_state_begins_as_its_spec_says():
    p = torch.nn.Parameter(torch.full((2, 3), 5.0, dtype=torch.bfloat16))
    specs = [
        (StateSpec("zeros"), torch.zeros(2, 3, dtype=torch.bfloat16)),
        (StateSpec("z", init=torch.clone), torch.full((2, 3), 5.0, dtype=torch.bfloat16)),
        (StateSpec("wide", dtype=torch.float32), torch.zeros(2, 3)),
        (StateSpec("rows", over=-1), torch.zeros(2, 1).bfloat16()),
        (StateSpec("columns", over=-2, keeps_axis=False), torch.zeros(3).bfloat16()),
    ]
    for spec, expected in specs:
        found = spec.create(p.detach(), {})
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


CHOICES = [
    (SGD, {"momentum": 0.9}),
    (AdamW, {}),
    (AdamW, {"foreach": True}),
    (AdamW, {"foreach": False}),
    (AdamW, {"fused": True}),
]


def stepped(cls, options, count=3):
    params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(count)]
    ours = cls(params, lr=0.1, **options)
    for _ in range(4):  # by then a step is done with what the one before has found
        give_gradients(params)
        ours.step()
    return params, ours


def give_gradients(params):
    for p in params:
        p.grad = torch.ones_like(p)


def weak(tensor):
    return StorageWeakRef(tensor.untyped_storage())


@pytest.mark.parametrize(("cls", "options"), CHOICES, ids=label)
def test_what_the_user_lets_go_is_free_at_once(cls, options):
    params, ours = stepped(cls, options)
    name = next(key for key in ours.state[params[0]] if key != "step")
    weights = weak(params[0])
    params[0].data = torch.zeros(8, 8)
    assert weights.expired()
    moment = weak(ours.state[params[1]][name])
    ours.state[params[1]][name] = torch.zeros(8, 8)
    assert moment.expired()
    moments = [weak(ours.state[p][name]) for p in params]
    ours.state.clear()
    assert all(moment.expired() for moment in moments)
    weights = [weak(p) for p in params]
    params.clear()
    ours.param_groups.clear()
    assert all(p.expired() for p in weights)


@pytest.mark.parametrize(("cls", "options"), CHOICES, ids=label)
def test_a_cleared_state_begins_anew(cls, options):
    params, ours = stepped(cls, options)
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
    ours.state.clear()
    for optimizer, owned in ((ours, params), (cls(fresh, lr=0.1, **options), fresh)):
        give_gradients(owned)
        optimizer.step()
    assert all(map(torch.equal, params, fresh))


@pytest.mark.parametrize("lost", ["state of one", "one tensor", "one counter", "one is none"])
def test_a_state_that_lost_a_part_is_completed(lost):
    params, ours = stepped(AdamW, {})
    if lost == "state of one":
        ours.state[params[0]] = {}
    elif lost == "one is none":
        ours.state[params[0]]["exp_avg"] = None
    else:
        del ours.state[params[0]]["step" if lost == "one counter" else "exp_avg"]
    give_gradients(params)
    ours.step()
    assert ours.state[params[0]].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_a_state_that_is_taken_out_begins_anew_and_leaves_the_others():
    params, ours = stepped(SGD, {"momentum": 0.9})
    for p, value in zip(params, (1.0, 2.0, 3.0), strict=True):
        ours.state[p]["momentum_buffer"].fill_(value)
    del ours.state[params[0]]
    give_gradients(params)
    ours.step()
    buffers = [ours.state[p]["momentum_buffer"][0, 0].item() for p in params]
    assert buffers == pytest.approx([1.0, 2.8, 3.7])


@pytest.mark.parametrize("package", [torch.optim, optimplug.optim], ids=["torch", "ours"])
@pytest.mark.parametrize(("cls", "options"), CHOICES[:4], ids=label)
def test_a_parameter_that_moves_to_another_device_alone_is_torchs_error(package, cls, options):
    params = [torch.nn.Parameter(torch.ones(8, 8)) for _ in range(3)]
    optimizer = getattr(package, cls.__name__)(params, lr=0.1, **options)
    give_gradients(params)
    optimizer.step()
    move(params[0], "meta")
    give_gradients(params)
    if cls is SGD:
        optimizer.step()  # torch lets these mix on a device that computes nothing
    else:
        with pytest.raises(RuntimeError):
            optimizer.step()


def move(p, device):
    p.grad = None
    torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().to(device)))


@pytest.mark.parametrize(("cls", "options"), CHOICES[:4], ids=label)
def test_a_parameter_that_moves_with_its_state_steps_there(cls, options):
    params, ours = stepped(cls, options)
    stay, _ = stepped(cls, options)
    move(params[0], "meta")
    for name, value in ours.state[params[0]].items():
        if name != "step":
            ours.state[params[0]][name] = value.to("meta")
    give_gradients(params)
    give_gradients(stay)
    ours.step()
    assert params[0].is_meta
    assert all(p[0, 0] < q[0, 0] for p, q in zip(params[1:], stay[1:], strict=True))


@pytest.mark.parametrize(("cls", "options"), CHOICES, ids=label)
def test_a_parameter_may_be_swapped_for_another(cls, options):
    params, ours = stepped(cls, options)
    params[0].grad = None
    torch.utils.swap_tensors(params[0], torch.nn.Parameter(torch.full((8, 8), 5.0)))
    give_gradients(params)
    ours.step()
    assert 4.5 < params[0][0, 0] < 5


class Failing(SGD):
    """Its norm can't be computed, once."""

    fails = False

    def _gradient_scale(self, *args):
        if self.fails:
            raise RuntimeError("no norm")
        return super()._gradient_scale(*args)


def test_a_step_that_fails_is_not_the_first():
    def trained(cls, fails):
        params = [torch.nn.Parameter(torch.ones(4))]
        ours = cls(params, lr=0.1, momentum=0.9, dampening=0.5)
        for i in range(3):
            give_gradients(params)
            ours.fails = fails and i == 0
            if ours.fails:
                with pytest.raises(RuntimeError, match="no norm"):
                    ours.step()
                ours.fails = False
                assert not ours.state
            ours.step()
        return params[0]

    assert torch.equal(trained(Failing, fails=True), trained(SGD, fails=False))


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"fused": True}], ids=label)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_a_gradient_without_memory_is_zero(cls, compiled, options, monkeypatch):
    if not compiled:
        monkeypatch.setattr("optimplug._core.optim.executions.compiled.compiler", lambda: None)
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    twins = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    ours, theirs = cls(params, lr=0.1, **options), cls(twins, lr=0.1, foreach=False)
    ours.max_grad_norm = theirs.max_grad_norm = options.get("max_grad_norm")
    for _ in range(2):
        for (w, b), optimizer in ((params, ours), (twins, theirs)):
            optimizer.zero_grad()
            (w.sgn() * torch.arange(4.0) + b).sum().backward()
            assert w.grad.data_ptr() == 0
            optimizer.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("cls", "options"), CHOICES, ids=label)
def test_a_parameter_that_changes_its_group_has_the_settings_of_the_other(cls, options):
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": params, "lr": 0.1}, {"params": [], "lr": 0.0}]
    ours = cls(groups, lr=0.1, **options)
    give_gradients(params)
    ours.step()
    before = params[1].detach().clone()
    ours.param_groups[1]["params"].insert(0, ours.param_groups[0]["params"].pop())
    ours.step()
    assert torch.equal(params[1], before)


def test_a_state_that_is_transposed_in_its_memory_is_read_as_it_is():
    p, q = (torch.nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
    pair = SGD([p], lr=1.0, momentum=0.5), torch.optim.SGD([q], lr=1.0, momentum=0.5)
    for _ in range(4):  # the second lays out what lasts
        for optimizer, owned in zip(pair, (p, q), strict=True):
            owned.grad = torch.arange(9.0).view(3, 3)
            optimizer.step()
            kept = optimizer.state[owned]
            kept["momentum_buffer"] = kept["momentum_buffer"].t()
    assert torch.equal(p, q)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("transpose", [torch.Tensor.t_, lambda x: setattr(x, "data", x.data.t())])
def test_so_is_one_that_stays_the_tensor_that_it_was(transpose, missing):
    pair = []
    for choice in ({}, {"foreach": False}):
        params = [torch.nn.Parameter(torch.zeros(3, 3)) for _ in range(2)]
        pair.append((params, SGD(params, lr=1.0, momentum=0.5, **choice)))
    for number in range(8):
        for params, optimizer in pair:
            for p in params:
                p.grad = torch.arange(9.0).view(3, 3)
            if missing and number > 3:
                params[1].grad = None
            if number == 6:
                transpose(optimizer.state[params[0]]["momentum_buffer"])
            optimizer.step()
    ours, theirs = (params for params, _ in pair)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
@pytest.mark.parametrize("cls", [cls for cls in TABLE if cls not in (Rprop, Adafactor)])
def test_an_infinite_weight_without_decay_stays_so_beside_weights_that_decay(cls, choice):
    endless, other = (torch.nn.Parameter(torch.full((2,), v)) for v in (-torch.inf, 1.0))
    groups = [
        {"params": [endless], "weight_decay": 0.0},
        {"params": [other], "weight_decay": 0.1},
    ]
    ours = cls(groups, lr=0.1, **choice)
    endless.grad, other.grad = torch.zeros(2), torch.ones(2)
    ours.step()
    assert endless.tolist() == [-torch.inf] * 2


def test_one_type_of_two_bytes_is_not_read_as_another():
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    ours = SGD([p], lr=1.0)
    p.grad = torch.ones(4, dtype=torch.bfloat16)
    ours.step()
    p.data = p.data.fill_(0).view(torch.float16)  # where it lies, beside a gradient as it was
    ours.step()
    assert p.tolist() == [-1.0] * 4


def test_a_batch_whose_parameters_have_changed_their_form_is_not_prepared():
    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.ones(4)
    layout = laid_out(p, SGDRule(), state := defaultdict(dict))
    (batch,) = layout.batches([{"params": [p], **SGD_SETTINGS}], [p.grad], state)
    assert prepare(batch, {"foreach": True}) is not None
    p.data = p.data.double()
    assert prepare(batch, {"foreach": True}) is None


@pytest.mark.parametrize("cls", TABLE)
def test_a_first_step_that_is_left_out_begins_no_state(cls):
    if cls is Adagrad:
        pytest.skip("its state begins with the optimizer, as torch's")
    p, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    ours = cls([p, other], lr=0.5, skip_nonfinite=True)
    p.grad, other.grad = torch.full((3,), torch.inf), torch.ones(3)
    ours.step()
    assert not ours.state
    ours.param_groups[0]["lr"] = 0.1
    p.grad = torch.ones(3)
    ours.step()
    fresh = cls([q := torch.nn.Parameter(torch.ones(3))], lr=0.1)
    q.grad = torch.ones(3)
    fresh.step()
    assert torch.equal(p, q)
