"""Weights and moments that are kept in a way of their own: ``rounding`` and ``state_dtype``."""

import copy
import inspect
import pickle
from contextlib import nullcontext

import pytest
import torch
from support.labels import label
from support.memory import peak_of
from support.optimizer_runs import public, ready, stored
from support.optimizers import TABLE
from support.processes import in_two_processes
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from optimplug import ArgumentError
from optimplug._core.optim.executions import foreach
from optimplug._core.optim.executions.bits import joined
from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.memory import state_bytes
from optimplug.optim import (
    ADOPT,
    CAME,
    LAMB,
    LBFGS,
    SGD,
    Adafactor,
    Adagrad,
    AdamW,
    AdEMAMix,
    Lion,
    MultiOptimizer,
    Muon,
    Prodigy,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    SparseAdam,
    StableAdamW,
    TransformersAdafactor,
)

NARROW = torch.bfloat16
CHOICES = [{}, {"foreach": True}, {"foreach": False}]
ROUNDINGS = ["exact", "kahan", "stochastic"]
HAVING = [cls for cls in public() if "rounding" in inspect.signature(cls).parameters]
CLASSES = [cls for cls in HAVING if cls is not SparseAdam]  # for its gradients, see its own tests
RATE = {SGD: {"lr": 0.05}, ScheduleFreeSGD: {"lr": 0.05}, Prodigy: {"d0": 0.01}}
OF_MATRICES = {Muon: ((3, 6), (6, 9), (3, 6), (6, 2, 3, 3))}
OPTIONS = [
    *(
        (cls, {k: v for k, v in options.items() if "ensor" not in str(v)})
        for cls, row in TABLE.items()
        if cls in CLASSES
        for options in row.options
    ),
    *((cls, {}) for cls in CLASSES if cls not in TABLE),
    *(
        (cls, {"weight_decay": 0.1})
        for cls in (Lion, AdEMAMix, ADOPT, CAME, LAMB, StableAdamW, ScheduleFreeAdamW)
    ),
    (Prodigy, {"weight_decay": 0.1, "growth_rate": 1.02}),
    (TransformersAdafactor, {"beta1": 0.9, "weight_decay": 0.1}),
    (TransformersAdafactor, {"relative_step": False, "scale_parameter": False, "lr": 0.01}),
    (Muon, {"split": 3, "transposed": True}),
]


def test_all_but_one_have_them():
    assert [cls for cls in public() if cls not in HAVING] == [LBFGS]


DECAY = {"lr": 2e-3, "weight_decay": 1e-2}
DECAYING = [
    *((cls, DECAY) for cls in (AdamW, SGD, Lion, Adafactor, CAME, StableAdamW, Muon)),
    (TransformersAdafactor, {**DECAY, "relative_step": False, "scale_parameter": False}),
    (LAMB, {"lr": 2e-5, "weight_decay": 1e-2}),  # what it moves by is lr of a weight in all
    (Prodigy, {"d0": 2e-3, "weight_decay": 1e-2}),
]
"""Each takes 2e-5 of a weight at every step, where there are no gradients."""


def weight(value=0.5, size=1, dtype=NARROW):
    return torch.nn.Parameter(torch.full((size,), value, dtype=dtype))


@pytest.mark.parametrize(
    ("cls", "options", "choice", "rounding"),
    [
        *each_in_turn(DECAYING[:4], CHOICES, ["exact", "kahan"]),
        *(
            pytest.param(*row, {}, rounding, marks=pytest.mark.slow)
            for row in DECAYING[4:]
            for rounding in ("exact", "kahan")
        ),
    ],
    ids=label,
)
def test_weight_decay_moves_a_narrow_weight(cls, options, choice, rounding):
    w = torch.nn.Parameter(torch.full((1, 1), 0.5, dtype=NARROW))
    ours = cls([w], **options, rounding=rounding, **choice)
    w.grad = torch.zeros_like(w)
    for _ in range(2000):
        ours.step()
    assert w.item() == pytest.approx(0.5 * (1 - 2e-5) ** 2000, abs=1e-3)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        pytest.param(*row, marks=() if row[0] in (AdamW, Adafactor) else pytest.mark.slow)
        for row in DECAYING
        if row[0] is not Muon
    ],
    ids=label,
)
def test_weight_decay_moves_the_mean_of_narrow_weights(cls, options):
    # One weight is off by 6e-3 (standard deviation), the mean by 6e-5: 1e-3 is 16 of them.
    w = torch.nn.Parameter(torch.full((100, 100), 0.5, dtype=NARROW))
    ours = cls([w], **options, rounding="stochastic")
    w.grad = torch.zeros_like(w)
    for _ in range(2000):
        ours.step()
    assert w.float().mean().item() == pytest.approx(0.480, abs=1e-3)


@pytest.mark.parametrize("start", [0.1, 0.3, -0.7, 0.99])
def test_a_compensation_loses_no_part_of_small_updates(start):
    # Rounded to nearest, a compensation is off by 7 % of the way here.
    w = weight(start)
    begin = w.item()
    ours = SGD([w], lr=2e-3, weight_decay=1e-2, rounding="kahan")
    w.grad = torch.zeros_like(w)
    for _ in range(2000):
        ours.step()
    found = w.item() + ours.state[w]["compensation"].item()
    way = begin * ((1 - 2e-5) ** 2000 - 1)
    assert found - begin == pytest.approx(way, rel=0.02)


def twins(cls, options, choice, rounding="exact"):
    narrow = parameters(OF_MATRICES.get(cls, ((3, 4), (7,), (5, 5, 2), ())), NARROW)
    wide = [torch.nn.Parameter(p.detach().float()) for p in narrow]
    given = {**RATE.get(cls, {}), **options, **choice}
    return ready(cls(narrow, **given, rounding=rounding)), ready(cls(wide, **given))


def full(optimizer, p):
    return joined(p.detach().float(), optimizer.state[p]["remainder"].float())


OF_EACH = list({cls: (cls, options) for cls, options in OPTIONS}.values())
# Many steps begin with the few, so only quick rows are run with those.
EXACT = [
    *((*row.values, 15) for row in each_in_turn(OF_EACH, CHOICES) if not row.marks),
    *(
        pytest.param(*row, choice, 200, marks=pytest.mark.slow)
        for row in OPTIONS
        for choice in CHOICES
    ),
]


@pytest.mark.parametrize(("cls", "options", "choice", "steps"), EXACT, ids=label)
def test_exact_weights_are_those_of_float32_bit_for_bit(cls, options, choice, steps):
    ours, wide = twins(cls, options, choice)
    for optimizer in (ours, wide):
        descend(optimizer, steps, rounding=NARROW)
    (group,), (other,) = ours.param_groups, wide.param_groups
    for p, q in zip(group["params"], other["params"], strict=True):
        assert same_bits(full(ours, p), q.detach())
        nearest = q.detach().bfloat16()
        assert torch.equal(p.detach(), nearest) or (p - nearest).abs().max() < 0.01
        for name, value in wide.state[q].items():
            assert same_bits(ours.state[p][name], value)


@pytest.mark.parametrize(
    ("cls", "rounding", "choice"),
    each_in_turn(CLASSES, ["kahan", "stochastic"], CHOICES),
    ids=label,
)
def test_other_roundings_stay_near_float32(cls, rounding, choice):
    ours, wide = twins(cls, {}, choice, rounding)
    found, truth = descend(ours, 20, rounding=NARROW), descend(wide, 20, rounding=NARROW)
    for p, q in zip(found, truth, strict=True):
        assert p.dtype == NARROW
        # Kahan's is half a unit off, a random walk of 20 units hardly 10.
        torch.testing.assert_close(p.float(), q, rtol=0.06, atol=0.06)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, NARROW, torch.float16], ids=label)
@pytest.mark.parametrize("cls", [AdamW, Lion, Adagrad])
def test_moments_have_the_type_that_is_asked_for(cls, dtype, state_dtype, choice):
    params = parameters(dtype=dtype)
    wide = [torch.nn.Parameter(p.detach().clone().float()) for p in params]
    options = {"eps": 1e-3} if cls is AdamW else {}
    ours, theirs = cls(params, **options, state_dtype=state_dtype, **choice), cls(wide, **options)
    found, truth = descend(ours, 10, rounding=NARROW), descend(theirs, 10, rounding=NARROW)
    for p, q in zip(found, truth, strict=True):
        torch.testing.assert_close(p.float(), q, rtol=0.02, atol=0.02)
    kept = {v.dtype for s in ours.state.values() for n, v in s.items() if n != "step"}
    assert kept == {getattr(torch, state_dtype)}


def test_moments_in_float32_learn_of_small_gradients_after_large_ones():
    def second_moment(**options):
        w = weight()
        ours = AdamW([w], **options)
        for step in range(3000):
            w.grad = torch.full_like(w, 1.0 if step < 10 else 1e-3)
            ours.step()
        return ours.state[w]["exp_avg_sq"].item()

    assert second_moment() > 0.005  # in bfloat16 it stops to fall
    assert second_moment(state_dtype="float32") == pytest.approx(0.0005, rel=0.02)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_wider_parameters_are_as_without(rounding):
    found = descend(AdamW(parameters(), rounding=rounding), 5)
    assert all(map(same_bits, found, descend(AdamW(parameters()), 5)))


def test_without_them_groups_and_states_have_torchs_keys():
    ours = AdamW(parameters(dtype=NARROW))
    descend(ours, 2)
    theirs = torch.optim.AdamW(parameters(dtype=NARROW))
    assert ours.param_groups[0].keys() == theirs.param_groups[0].keys()
    assert ours.state_dict()["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("cls", [AdamW, SGD, Lion])
def test_what_is_not_finite_stays(cls, rounding, value, choice):
    w = weight(1.0, size=3)
    ours = cls([w], lr=0.01, rounding=rounding, **choice)
    for step in range(4):
        w.grad = torch.ones_like(w)
        ours.step()
        if step == 1:
            with torch.no_grad():
                w[1] = value
    torch.testing.assert_close(w[1].detach().float(), torch.tensor(value), equal_nan=True)
    assert w[0].isfinite()
    assert w[2].isfinite()


def test_a_weight_that_is_set_to_zero_begins_there_again():
    w = weight(1.0)
    ours = SGD([w], lr=1e-3, rounding="exact")
    for _ in range(3):
        w.grad = torch.ones_like(w)
        ours.step()
    with torch.no_grad():
        w.zero_()
    ours.state[w]["remainder"].fill_(-5)
    ours.step()
    assert w.item() == pytest.approx(-1e-3, rel=0.01)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("value", [0.0, 1e-3, -1e-3])
def test_what_was_left_out_of_a_large_weight_is_not_added_to_a_small_one(value, choice):
    w = weight(3.0)
    ours = SGD([w], lr=1e-3, rounding="kahan", **choice)
    w.grad = torch.full_like(w, 5.0)
    ours.step()
    assert ours.state[w]["compensation"].abs() > 4e-3
    with torch.no_grad():
        w.fill_(value)
    w.grad = torch.zeros_like(w)
    ours.step()
    assert w.item() == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("state_dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("rounding", ["nearest", *ROUNDINGS])
@pytest.mark.parametrize("cls", [AdamW, SGD])
def test_a_saved_run_goes_on_bit_for_bit(cls, rounding, state_dtype, choice):
    def build(params):
        options = {"momentum": 0.9, "lr": 0.01} if cls is SGD else {}
        return cls(params, **options, rounding=rounding, state_dtype=state_dtype, **choice)

    whole = build(parameters(dtype=NARROW))
    values = descend(whole, 3)
    resumed = build([torch.nn.Parameter(value) for value in values])
    resumed.load_state_dict(stored(whole.state_dict()))
    rest = descend(whole, 4, seed=7), descend(resumed, 4, seed=7)
    assert all(map(same_bits, *rest))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_a_copy_goes_on_alike(copied, rounding):
    ours = AdamW(parameters(dtype=NARROW), rounding=rounding, rounding_seed=3)
    descend(ours, 3)
    theirs = copied(ours)
    assert all(map(same_bits, descend(ours, 3, seed=7), descend(theirs, 3, seed=7)))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_run_saved_as_torchs_distributed_checkpoints_are_goes_on(rounding):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).to(NARROW)
        return model, AdamW(model.parameters(), rounding=rounding)

    (model, whole), (copied, resumed) = build(), build()
    descend(whole, 3, skip=False)
    copied.load_state_dict(model.state_dict())
    # It makes the state that it loads into by a step with a rate of 0.
    saved = copy.deepcopy(get_optimizer_state_dict(model, whole))
    set_optimizer_state_dict(copied, resumed, saved)
    assert all(map(same_bits, descend(whole, 2, seed=7), descend(resumed, 2, seed=7)))


CHANGES = [
    ({"rounding": "exact"}, {}, {"exp_avg": NARROW, "exp_avg_sq": NARROW}),
    ({}, {"rounding": "kahan"}, {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
    (
        {"rounding": "exact"},
        {"rounding": "stochastic", "state_dtype": "bfloat16"},
        {"exp_avg": NARROW, "exp_avg_sq": NARROW},
    ),
]


@pytest.mark.parametrize(("saved", "own", "types"), CHANGES, ids=label)
def test_another_storage_takes_a_state_over_and_says_so(saved, own, types, caplog):
    before = AdamW(parameters(dtype=NARROW), **saved)
    descend(before, 3)
    ours = AdamW(before.param_groups[0]["params"], **own)
    ours.load_state_dict(stored(before.state_dict()))
    (said,) = caplog.messages
    assert "param_groups[0] was saved with rounding=" in said
    assert {key: ours.param_groups[0].get(key) for key in ("rounding", "state_dtype")} == {
        key: own.get(key) for key in ("rounding", "state_dtype")
    }
    for kept in ours.state.values():
        assert {name: value.dtype for name, value in kept.items() if name != "step"} == types
    descend(ours, 2)


def test_momentum_survives_a_change_to_another_rounding():
    before = SGD(parameters(dtype=NARROW), lr=0.01, momentum=0.9)
    descend(before, 3, skip=False)
    ours = SGD(before.param_groups[0]["params"], lr=0.01, momentum=0.9, rounding="exact")
    ours.load_state_dict(before.state_dict())
    p = ours.param_groups[0]["params"][0]
    momentum = ours.state[p]["momentum_buffer"].clone()
    p.grad = torch.zeros_like(p)
    ours.step()
    torch.testing.assert_close(ours.state[p]["momentum_buffer"], momentum * 0.9)


def test_torch_takes_the_state():
    ours = AdamW(parameters(dtype=NARROW), rounding="exact")
    descend(ours, 3)
    theirs = torch.optim.AdamW(ours.param_groups[0]["params"])
    theirs.load_state_dict(stored(ours.state_dict()))
    descend(theirs, 1)
    # Torch has made bfloat16 of the bits, of which 32767 would come back as -32768.
    ours.load_state_dict(theirs.state_dict())
    assert not any("remainder" in kept for kept in ours.state.values())
    descend(ours, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounding": "exakt"}, "rounding must be one of nearest"),
        ({"state_dtype": "fp8"}, "state_dtype, if not None, must be one of float32"),
    ],
    ids=label,
)
def test_what_there_is_not_is_refused_between_two_steps(change, message):
    ours = AdamW(parameters(dtype=NARROW))
    descend(ours, 1, skip=False)
    ours.param_groups[0].update(change)
    with pytest.raises(ArgumentError, match=message):
        ours.step()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 4),
        ({"rounding": "exact"}, 10),
        ({"rounding": "kahan", "state_dtype": "bfloat16"}, 6),
        ({"rounding": "stochastic"}, 8),
        ({"state_dtype": "float32"}, 8),
    ],
    ids=label,
)
def test_state_bytes(options, size):
    w = weight(size=1000)
    ours = AdamW([w], **options)
    assert state_bytes(ours) == size * 1000 + 4
    descend(ours, 1, skip=False)
    assert sum(value.nbytes for value in ours.state[w].values()) == size * 1000 + 4


def test_a_group_has_its_own():
    first, other = weight(), weight()
    ours = SGD(
        [{"params": first}, {"params": other, "rounding": "nearest"}],
        lr=2e-3,
        weight_decay=1e-2,
        rounding="exact",
    )
    for w in (first, other):
        w.grad = torch.zeros_like(w)
    for _ in range(200):
        ours.step()
    assert (first.item(), other.item()) == (0.498046875, 0.5)


def test_one_of_several_optimizers_has_its_own():
    matrix, bias = torch.nn.Parameter(torch.ones(2, 2)), weight()
    ours = MultiOptimizer(
        [
            {"params": [matrix], "optimizer": "Muon"},
            {"params": [bias], "optimizer": "SGD", "lr": 1e-4, "rounding": "exact"},
        ]
    )
    matrix.grad, bias.grad = torch.ones_like(matrix), torch.ones_like(bias)
    ours.step()
    assert full(ours, bias).item() == pytest.approx(0.4999)
    again = MultiOptimizer([{**group, "params": group["params"]} for group in ours.param_groups])
    again.load_state_dict(stored(ours.state_dict()))
    again.step()
    assert full(again, bias).item() == pytest.approx(0.4998)


REFUSED = [
    (AdamW, {"rounding": "up"}, "rounding must be one of nearest, stochastic, kahan, exact"),
    (
        AdamW,
        {"state_dtype": "float64"},
        "state_dtype, if not None, must be one of float32, bfloat16",
    ),
    (AdamW, {"rounding_seed": -1, "rounding": "stochastic"}, "rounding_seed must be an int >= 0"),
    (AdamW, {"rounding": "exact", "differentiable": True}, "does not support differentiable"),
    (AdamW, {"state_dtype": "bfloat16", "fused": True}, "state_dtype does not support fused"),
]
OF_GROUPS = [
    (AdamW, {"roundng": "exact"}, "did you mean 'rounding'"),
    (LBFGS, {"rounding": "exact"}, "LBFGS has no rounding: it looks for its way by losses"),
    (LBFGS, {"state_dtype": "float32"}, "LBFGS has no state_dtype"),
    (Muon, {"rounding": "up"}, "rounding must be one of nearest"),
    (
        SparseAdam,
        {"state_dtype": "8bit"},
        "SparseAdam has no state_dtype='8bit': it updates single",
    ),
    (ScheduleFreeSGD, {"state_dtype": "8bit"}, "has nothing to keep in 8 bits: z must be exact"),
    (ScheduleFreeAdamW, {"rounding": "exact", "differentiable": True}, "is a choice for all"),
]


@pytest.mark.parametrize(("cls", "options", "message"), REFUSED, ids=label)
def test_what_there_is_not_is_refused(cls, options, message):
    with pytest.raises(ArgumentError, match=message):
        cls([weight()], **options)


@pytest.mark.parametrize(("cls", "own", "message"), [*OF_GROUPS, *REFUSED[:2]], ids=label)
def test_so_is_that_of_a_group(cls, own, message):
    matrix = torch.nn.Parameter(torch.ones(2, 2, dtype=NARROW))
    with pytest.raises(ArgumentError, match=message):
        cls([{"params": [matrix], **own}])


def test_float16_and_complex_parameters_are_refused():
    with pytest.raises(ArgumentError, match="one is float16"):
        AdamW([weight(dtype=torch.float16)], rounding="exact")
    with pytest.raises(ArgumentError, match="one is complex"):
        AdamW([weight(dtype=torch.complex64)], state_dtype="bfloat16")
    turned = weight()
    ours = AdamW([turned], rounding="exact")
    turned.data = turned.data.half()
    turned.grad = torch.ones_like(turned)
    with pytest.raises(ArgumentError, match="one is float16"):
        ours.step()


def test_large_tensors_in_parts_draw_what_they_draw_whole(monkeypatch):
    def run():
        ours = SGD(parameters([(100, 30), (50,)], NARROW), lr=0.01, rounding="stochastic",
                   foreach=True)  # fmt: skip
        return descend(ours, 2)

    whole = run()
    monkeypatch.setattr(foreach, "SCRATCH_BYTES", 20_000)
    assert all(map(same_bits, whole, run()))


@pytest.mark.parametrize(
    ("cls", "rounding", "clip"), each_in_turn([AdamW, SGD], ROUNDINGS, [None, 1.0]), ids=label
)
def test_a_step_allocates_less_than_the_cap(monkeypatch, cls, rounding, clip):
    monkeypatch.setattr(foreach, "SCRATCH_BYTES", 2**20)
    params = parameters([(1000, 1000), (300, 300), (7,), (500, 500)], NARROW)
    ours = cls(params, lr=1e-3, rounding=rounding, max_grad_norm=clip, foreach=True)
    descend(ours, 1, skip=False)
    assert 2**18 < peak_of(ours.step) < 2**20


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_compiled_step_allocates_nothing_large(rounding):
    ours = AdamW(parameters([(300, 300), (7,)], NARROW), rounding=rounding)
    descend(ours, 2, skip=False)
    assert peak_of(lambda: (torch.zeros(3), ours.step())) < 1000


def test_a_group_may_change_its_storage_between_two_steps():
    ours = AdamW(parameters(dtype=NARROW))
    descend(ours, 2, skip=False)
    (group,) = ours.param_groups
    group.update(rounding="exact", state_dtype="float32")
    descend(ours, 2, skip=False)
    kept = ours.state[group["params"][0]]
    types = {name: value.dtype for name, value in kept.items()}
    wide = dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.float32)
    assert types == {**wide, "remainder": torch.int16}
    assert kept["step"] == 4


@pytest.mark.parametrize("choice", CHOICES, ids=label)
def test_another_seed_draws_otherwise(choice):
    def run(seed):
        w = weight(size=1000)
        w.grad = torch.ones_like(w)
        SGD([w], lr=1e-3, rounding="stochastic", rounding_seed=seed, **choice).step()
        return w

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize(
    ("cls", "options"),
    [(AdamW, {"rounding": "stochastic"}), (SGD, {"momentum": 0.9, "state_dtype": "8bit"})],
    ids=label,
)
def test_a_group_counts_its_steps_for_those_that_may_need_it(cls, options, choice):
    ours = cls(parameters(), lr=0.01, **options, **choice)  # too wide, or too small
    descend(ours, 6, skip=False)
    assert ours.param_groups[0]["rounding_step"] == 6


@pytest.mark.parametrize("rounding", ["exact", "kahan"])
def test_what_another_rounding_kept_is_let_go(rounding):
    w = weight(1.0)
    ours = SGD([w], lr=1e-3, rounding=rounding)
    w.grad = torch.ones_like(w)
    ours.step()
    assert ours.state[w]
    (group,) = ours.param_groups
    group["rounding"] = "nearest"
    ours.step()
    assert w not in ours.state  # or going back would find the bits of an older weight
    group["rounding"] = rounding
    w.grad = torch.zeros_like(w)
    ours.step()
    assert all(value == 0 for value in ours.state[w].values())


@pytest.mark.parametrize("types", [(NARROW, torch.float32), (torch.float32, NARROW)], ids=label)
@pytest.mark.parametrize("cls", [SGD, AdamW, StableAdamW])
def test_a_parameter_that_changes_its_type_is_stored_as_the_new_one_asks(cls, types):
    def run(**choice):
        params = parameters(dtype=types[0])
        ours = cls(params, lr=1e-3, rounding="exact", **choice)
        descend(ours, 2, skip=False, rounding=NARROW)
        for p in params:
            p.grad = None
            p.data = p.data.to(types[1])
        descend(ours, 2, skip=False, rounding=NARROW)
        return [full(ours, p) if types[1] == NARROW else p for p in params]

    for one, other in zip(run(), run(foreach=False), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("parts", [(slice(None), slice(None)), (slice(200), slice(100, None))])
@pytest.mark.parametrize("options", [{"rounding": r} for r in ROUNDINGS] + [{}], ids=label)
@pytest.mark.parametrize("cls", [SGD, LAMB])
def test_no_update_is_lost_where_parameters_share_memory(cls, options, parts):
    def run(**choice):
        memory = torch.ones(300, dtype=NARROW)
        params = [torch.nn.Parameter(memory[part]) for part in parts]
        for p in params:
            p.grad = torch.ones_like(p)
        cls(params, lr=0.1, state_dtype="float32", **options, **choice).step()
        return memory

    assert torch.equal(run(), run(foreach=False))


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize(
    "options", [{"rounding": "stochastic"}, {"state_dtype": "8bit"}], ids=label
)
@pytest.mark.parametrize("cls", [AdamW, StableAdamW, Muon, Prodigy])
def test_a_step_is_the_same_whatever_the_default_device(cls, options, choice):
    def run(mode):
        params = parameters([(70, 70), (5, 3)], NARROW)
        ours = ready(cls(params, **RATE.get(cls, {"lr": 1e-3}), **options, **choice))
        for p in params:
            p.grad = torch.ones_like(p)
        with mode():
            ours.step()
            ours.load_state_dict(ours.state_dict())
            ours.step()
        return params

    # A library would read whatever stands at address 0.
    pairs = zip(run(nullcontext), run(lambda: torch.device("meta")), strict=True)
    assert all(same_bits(one, other) for one, other in pairs)


# Sharded: what is drawn belongs to the element of the whole parameter.


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_sharded_weights_move_as_plain_ones(mesh, rounding, choice):
    plain = parameters(dtype=NARROW)
    forms = [[Shard(0)], [Replicate()], [Shard(1)], [Replicate()]]
    placed = [
        torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, form))
        for p, form in zip(plain, forms, strict=True)
    ]
    ours, theirs = (AdamW(params, rounding=rounding, **choice) for params in (placed, plain))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q, form in zip(placed, plain, forms, strict=True):
            q.grad = torch.randn(q.shape, generator=generator).to(NARROW)
            p.grad = distribute_tensor(q.grad.clone(), mesh, form)
        ours.step()
        theirs.step()
    for p, q in zip(placed, plain, strict=True):
        assert isinstance(p, DTensor)
        assert same_bits(p.full_tensor().detach(), q.detach())


SHAPES = ((5, 4), (7,), (3, 5, 2))
IN_TWO = [(rounding, choice) for rounding in ROUNDINGS for choice in ({}, {"foreach": False})]
FORMS = ([Shard(0)], [Shard(0)], [Shard(1)])


def moved(rounding, choice, mesh=None):
    """What weights of uneven shards become, or those of one process."""
    # Only the loop takes shards that are no range of the whole when it draws, and the executions
    # need not agree in the last bit.
    forms = FORMS if choice else [[Shard(0)]] * 3

    def placed(value, form):
        return value.clone() if mesh is None else distribute_tensor(value.clone(), mesh, form)

    values = parameters(SHAPES, NARROW)
    params = [
        torch.nn.Parameter(placed(p.detach(), form)) for p, form in zip(values, forms, strict=True)
    ]
    ours = AdamW(params, lr=1e-3, rounding=rounding, **choice)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for p, form in zip(params, forms, strict=True):
            p.grad = placed(torch.randn(p.shape, generator=generator).to(NARROW), form)
        ours.step()
    return [p.detach() if mesh is None else p.detach().full_tensor() for p in params]


def move_sharded():
    mesh = init_device_mesh("cpu", (2,))
    return [moved(rounding, choice, mesh) for rounding, choice in IN_TWO]


@pytest.mark.slow
def test_two_processes_do_what_one_does():
    for found in in_two_processes(move_sharded):
        for (rounding, choice), weights in zip(IN_TWO, found, strict=True):
            assert all(map(same_bits, weights, moved(rounding, choice)))
