"""``state_dtype="8bit"``: what is kept, how near it is to float32, what is saved and loaded."""

import copy
import inspect
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from support.labels import label
from support.memory import peak_of
from support.optimizer_runs import ROWS, public, stored
from support.processes import in_two_processes
from support.rows import each_in_turn
from support.tensors import descend, parameters, same_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from optimplug import ArgumentError, StateError
from optimplug._core.optim.executions import foreach
from optimplug._core.optim.executions.bits import joined
from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.memory import state_bytes
from optimplug._core.optim.storage import coded_state
from optimplug._core.optim.storage.codes import BLOCK
from optimplug.optim import (
    SGD,
    Adagrad,
    AdamW,
    AdEMAMix,
    Lion,
    MultiOptimizer,
    RMSprop,
    Rprop,
    SparseAdam,
)

NARROW = torch.bfloat16
CHOICES = [{}, {"foreach": True}, {"foreach": False}]
SHAPES = ((70, 61), (5000,), (64, 128), (10,), (4097,))
"""Whole blocks and a rest, whole blocks alone, too small, one element more than blocks."""
EXACT = {"Rprop", "ASGD", "ScheduleFreeSGD", "SparseAdam"}
"""Those that keep nothing a code is good for, or update single rows."""
NAMES = [
    cls.__name__
    for cls in public()
    if "state_dtype" in inspect.signature(cls).parameters and cls.__name__ not in EXACT
]
CLASSES = {cls.__name__: cls for cls in public()}


def build(name, params=None, **options):
    shapes = [shape for shape in SHAPES if name != "Muon" or len(shape) == 2]
    params = parameters(shapes) if params is None else params
    ours = CLASSES[name](params, **{**ROWS[name].options, "state_dtype": "8bit", **options})
    ours.train()  # for those that have modes
    return ours


def coded(kept):
    return {name for name in kept if name.endswith("_codes")}


@pytest.mark.parametrize("name", NAMES)
def test_moments_of_large_tensors_are_codes_and_scales(name):
    # In the loop, where the class is told how it is run: no kernel need be compiled for what is kept.
    told = "foreach" in inspect.signature(CLASSES[name]).parameters
    ours = build(name, **({"foreach": False} if told else {}))
    descend(ours, 2, skip=False)
    some = False
    for p in ours.param_groups[0]["params"]:
        for key, value in ours.state[p].items():
            if p.numel() < 4096:
                assert not key.endswith(("_codes", "_scales"))
            elif key.endswith("_codes"):
                some = True
                assert value.dtype in (torch.int8, torch.uint8)
                assert value.shape == p.shape
                scales = ours.state[p][key.replace("_codes", "_scales")]
                assert scales.shape == (-(-p.numel() // BLOCK),)
                assert scales.dtype == torch.float32
    assert some


@pytest.mark.parametrize(("name", "choice"), each_in_turn(NAMES, CHOICES), ids=label)
def test_a_run_stays_near_that_of_float32(name, choice):
    if not choice.keys() <= inspect.signature(CLASSES[name]).parameters.keys():
        pytest.skip("it is not told how it is run")
    ours, wide = build(name, **choice), build(name, state_dtype="float32", **choice)
    begin = [p.detach().clone() for p in ours.param_groups[0]["params"]]
    found, truth = descend(ours, 20), descend(wide, 20)
    for p, q, start in zip(found, truth, begin, strict=True):
        off, way = (p - q).norm() / p.numel() ** 0.5, (q - start).norm() / p.numel() ** 0.5
        assert off <= 0.1 * way
        assert p.numel() >= 4096 or same_bits(p, q)


@pytest.mark.parametrize(
    ("cls", "options", "dtype"),
    each_in_turn(
        [AdamW, SGD, Lion, AdEMAMix],
        [{}, {"rounding": "exact"}, {"rounding": "stochastic"}],
        [torch.float32, NARROW, torch.float64],
        least=9,
    ),
    ids=label,
)
def test_every_execution_does_the_same(cls, options, dtype):
    def run(choice):
        given = {"momentum": 0.9} if cls is SGD else {}
        ours = cls(
            parameters(SHAPES, dtype), lr=1e-3, state_dtype="8bit", **given, **options, **choice
        )
        return descend(ours, 5)

    found = [run(choice) for choice in CHOICES]
    for other in found[1:]:
        for p, q in zip(other, found[0], strict=True):
            # Where they differ in a last bit, one number in thousands gets the next code.
            assert ((p - q).abs() > 1e-2 * 1e-3).double().mean() < 0.01 or dtype == NARROW
            torch.testing.assert_close(p, q, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize(
    ("cls", "rounding", "compact", "choice"),
    each_in_turn(
        [AdamW, SGD], ["nearest", "exact", "kahan", "stochastic"], [False, True], CHOICES, least=12
    ),
    ids=label,
)
def test_a_run_goes_on_bit_for_bit_from_any_step(cls, rounding, compact, choice):
    options = {"momentum": 0.9, "lr": 0.01} if cls is SGD else {}
    options = {**options, "rounding": rounding, "state_dtype": "8bit", **choice}
    whole = cls(parameters(((4200,), (10,)), NARROW), **options, compact_state=compact)
    saved = []
    for step in range(5):
        values = descend(whole, 1, skip=False, seed=step)
        saved.append((values, stored(whole.state_dict())))
    for step, (values, state) in enumerate(saved[:-1], start=1):
        resumed = cls([torch.nn.Parameter(value) for value in values], **options)
        resumed.load_state_dict(state)
        for seed in range(step, 5):
            found = descend(resumed, 1, skip=False, seed=seed)
        assert all(map(same_bits, found, saved[-1][0]))


def test_a_state_dict_has_torchs_keys_in_float32_and_torch_goes_on():
    ours = AdamW(parameters(SHAPES), state_dtype="8bit")
    descend(ours, 3, skip=False)
    saved = stored(ours.state_dict())
    for kept in saved["state"].values():
        assert list(kept) == ["step", "exp_avg", "exp_avg_sq"]
        assert {value.dtype for value in kept.values()} == {torch.float32}
    copied = [torch.nn.Parameter(p.detach().clone()) for p in ours.param_groups[0]["params"]]
    theirs = torch.optim.AdamW(copied)
    theirs.load_state_dict(saved)
    for p, q in zip(descend(ours, 1, seed=7), descend(theirs, 1, seed=7), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_compact_state_holds_codes():
    ours = AdamW(parameters(SHAPES), state_dtype="8bit", compact_state=True)
    descend(ours, 2, skip=False)
    kept = ours.state_dict()["state"][0]
    assert kept["exp_avg_codes"].dtype == torch.int8
    assert "exp_avg" not in kept
    assert copy.deepcopy(ours).compact_state


@pytest.mark.parametrize(("saved", "own"), [("8bit", None), (None, "8bit"), ("8bit", "bfloat16")])
def test_another_storage_takes_the_moments_over_and_says_so(saved, own, caplog):
    before = AdamW(parameters(SHAPES), state_dtype=saved)
    descend(before, 3, skip=False)
    ours = AdamW(before.param_groups[0]["params"], state_dtype=own)
    ours.load_state_dict(stored(before.state_dict()))
    (said,) = caplog.messages
    assert f"state_dtype={saved!r} and goes on with rounding='nearest', state_dtype={own!r}" in said
    kept, old = ours.state_dict()["state"][0], before.state_dict()["state"][0]
    for key in ("exp_avg", "exp_avg_sq"):
        off = (kept[key].float() - old[key].float()).norm() / old[key].norm()
        assert off < 0.03
    descend(ours, 2)


def test_a_group_may_change_between_two_steps_and_back():
    ours, truth = AdamW(parameters(SHAPES)), AdamW(parameters(SHAPES))
    (group,) = ours.param_groups
    p, q = group["params"][0], truth.param_groups[0]["params"][0]
    for own, codes in ((None, 0), ("8bit", 2), ("float32", 0)):
        group["state_dtype"] = own
        descend(ours, 1, skip=False)
        descend(truth, 1, skip=False)
        assert len(coded(ours.state[p])) == codes
    assert ours.state[p]["step"] == 3
    off = ours.state[p]["exp_avg_sq"] - truth.state[q]["exp_avg_sq"]
    assert off.norm() < 0.02 * truth.state[q]["exp_avg_sq"].norm()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_a_copy_goes_on_alike(copied):
    ours = AdamW(parameters(SHAPES), state_dtype="8bit")
    descend(ours, 3)
    theirs = copied(ours)
    assert all(map(same_bits, descend(ours, 3, seed=7), descend(theirs, 3, seed=7)))


def test_torchs_distributed_checkpoint_takes_it():
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(100, 50)
        return model, AdamW(model.parameters(), state_dtype="8bit")

    (model, whole), (copied, resumed) = make(), make()
    descend(whole, 3, skip=False)
    copied.load_state_dict(model.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(model, whole))
    assert saved["state"]["weight"]["exp_avg"].dtype == torch.float32
    set_optimizer_state_dict(copied, resumed, saved)
    assert all(map(same_bits, descend(whole, 2, seed=7), descend(resumed, 2, seed=7)))


def test_what_begins_above_zero_does_so_in_codes():
    ours = Adagrad(parameters(SHAPES), initial_accumulator_value=0.25, state_dtype="8bit")
    assert (ours.state_dict()["state"][1]["sum"] == 0.25).all()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 8),
        ({"state_dtype": "8bit"}, 2 + 8 / BLOCK),
        ({"state_dtype": "8bit", "rounding": "exact"}, 4 + 8 / BLOCK),
    ],
    ids=label,
)
def test_state_bytes(options, size):
    w = torch.nn.Parameter(torch.ones(128, 128, dtype=NARROW if "rounding" in options else None))
    ours = AdamW([w], **options)
    assert state_bytes(ours) == size * w.numel() + 4
    descend(ours, 1, skip=False)
    assert sum(value.nbytes for value in ours.state[w].values()) == size * w.numel() + 4


REFUSED = [
    (Rprop, {}, "Rprop has nothing to keep in 8 bits: prev, step_size must be exact"),
    (SparseAdam, {}, "SparseAdam has no state_dtype='8bit': it updates single rows"),
    (AdamW, {"compact_state": 1}, "compact_state must be True or False"),
    (AdamW, {"fused": True}, "state_dtype does not support fused=True"),
    (AdamW, {"differentiable": True}, "state_dtype does not support differentiable=True"),
]


@pytest.mark.parametrize(("cls", "options", "message"), REFUSED, ids=label)
def test_what_there_is_not_is_refused(cls, options, message):
    with pytest.raises(ArgumentError, match=message):
        cls(parameters(SHAPES), state_dtype="8bit", **options)


@pytest.mark.parametrize(
    ("cls", "own", "message"),
    [
        (Rprop, {"state_dtype": "8bit"}, "has nothing to keep in 8 bits: prev, step_size"),
        (AdamW, {"state_dtype": "4bit"}, "must be one of float32, bfloat16, 8bit"),
        (AdamW, {"rounding": "up"}, "rounding must be one of"),
    ],
)
def test_so_it_is_between_two_steps_and_nothing_changes(cls, own, message):
    ours = cls(parameters(SHAPES))
    before = descend(ours, 1, skip=False)
    ours.param_groups[0].update(own)
    with pytest.raises(ArgumentError, match=message):
        ours.step()
    assert all(map(same_bits, before, (p.detach() for p in ours.param_groups[0]["params"])))


def test_compact_state_is_for_the_whole_optimizer():
    with pytest.raises(ArgumentError, match="compact_state is for the whole optimizer"):
        AdamW([{"params": parameters(SHAPES), "compact_state": True}])
    both = MultiOptimizer(
        [{"params": parameters(SHAPES), "optimizer": "AdamW", "state_dtype": "8bit"}],
        compact_state=True,
    )
    descend(both, 1, skip=False)
    assert coded(both.state_dict()["state"][0])


def test_centered_rmsprop_keeps_what_it_takes_a_difference_of():
    ours = RMSprop(parameters(SHAPES), centered=True, momentum=0.9, state_dtype="8bit")
    descend(ours, 3, skip=False)
    assert coded(ours.state[ours.param_groups[0]["params"][0]]) == {"momentum_buffer_codes"}


BROKEN = [
    ({"exp_avg_codes": torch.zeros(70, 61)}, "exp_avg must be kept in codes, int8 or uint8"),
    ({"exp_avg_scales": torch.zeros(3)}, "a scale for each 128 of them"),
    ({"exp_avg_scales": 1.0}, "got torch.int8 with 4270 elements and 1.0"),
    ({"exp_avg_codes": torch.zeros(61, 70, dtype=torch.int8)}, "must have the shape"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=label)
def test_a_compact_state_that_does_not_fit_changes_nothing(change, message):
    ours = AdamW(parameters(SHAPES), state_dtype="8bit", compact_state=True)
    descend(ours, 1, skip=False)
    saved = copy.deepcopy(ours.state_dict())
    before = copy.deepcopy(ours.state_dict())
    saved["state"][0].update(change)
    with pytest.raises(StateError, match=message):
        ours.load_state_dict(saved)
    after = ours.state_dict()["state"][0]
    assert all(same_bits(value, after[key]) for key, value in before["state"][0].items())


def test_a_state_dict_has_the_moments_that_a_step_uses():
    ours = AdamW(parameters(SHAPES), state_dtype="8bit")
    descend(ours, 1, skip=False)
    before = ours.state_dict()["state"][0]["exp_avg"]
    kept = ours.state[ours.param_groups[0]["params"][0]]
    kept["exp_avg"] = torch.ones_like(before)  # beside the codes, which stay what they are
    assert same_bits(ours.state_dict()["state"][0]["exp_avg"], before)


def test_saving_and_loading_turn_a_part_after_the_other(monkeypatch):
    monkeypatch.setattr(coded_state, "_PART", 128 * 16)
    ours = AdamW(parameters([(64, 128)] * 20), state_dtype="8bit")
    descend(ours, 1, skip=False)
    size = 20 * 64 * 128
    assert peak_of(ours.state_dict) < 9 * size  # 8 of them are the result
    saved = ours.state_dict()
    assert peak_of(lambda: ours.load_state_dict(saved)) < 4 * size  # 2.06 are the result


@pytest.mark.parametrize(("mode", "device"), [(nullcontext, "meta"), (FakeTensorMode, "cpu")])
def test_a_state_without_values_is_loaded(mode, device):
    with mode():
        p = torch.nn.Parameter(torch.empty(64, 64, device=device))
        ours = AdamW([p], state_dtype="8bit")
        descend_without_values(ours)
        ours.load_state_dict(ours.state_dict())
        descend_without_values(ours)
    (kept,) = ours.state.values()
    assert kept["exp_avg_sq_codes"].dtype == torch.uint8


def descend_without_values(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.empty_like(p)
    optimizer.step()


def test_a_negative_second_moment_is_refused():
    ours = AdamW(parameters(SHAPES), state_dtype="8bit")
    descend(ours, 1, skip=False)
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][1]["exp_avg_sq"][3] = -1
    with pytest.raises(StateError, match="exp_avg_sq must not be negative"):
        ours.load_state_dict(saved)


@pytest.mark.parametrize(
    ("cls", "dtype"), each_in_turn([AdamW, AdEMAMix], [torch.float32, NARROW]), ids=label
)
def test_a_step_allocates_less_than_the_cap(monkeypatch, cls, dtype):
    monkeypatch.setattr(foreach, "SCRATCH_BYTES", 2**20)
    params = parameters([(1000, 1000), (300, 300), (7,), (500, 500)], dtype)
    ours = cls(params, lr=1e-3, state_dtype="8bit", foreach=True)
    descend(ours, 1, skip=False)
    assert 2**18 < peak_of(ours.step) < 2**20


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("rounding", ["nearest", "exact"])
def test_a_compiled_step_allocates_nothing_large(rounding):
    ours = AdamW(parameters([(300, 300), (7,)], NARROW), rounding=rounding, state_dtype="8bit")
    descend(ours, 2, skip=False)
    assert peak_of(lambda: (torch.zeros(3), ours.step())) < 1000


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    def run(count):
        torch.set_num_threads(count)
        try:
            params = parameters([(300, 301), (70_001,), (64, 128)])
            return descend(AdamW(params, state_dtype="8bit"), 3)
        finally:
            torch.set_num_threads(1)

    assert all(map(same_bits, run(1), run(threads)))


def test_large_tensors_in_parts_get_the_codes_that_they_get_whole(monkeypatch):
    def run():
        ours = SGD(parameters([(100, 90), (5000,)]), lr=0.01, momentum=0.9, state_dtype="8bit",
                   foreach=True)  # fmt: skip
        return descend(ours, 3)

    whole = run()
    monkeypatch.setattr(foreach, "SCRATCH_BYTES", 20_000)
    assert all(map(same_bits, whole, run()))


def test_elements_in_another_order_are_right():
    plain = torch.nn.Parameter(torch.randn(16, 32, 4, 4))
    turned = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    found = []
    for p in (plain, turned):
        ours = AdamW([p], state_dtype="8bit", foreach=False)
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            p.grad = torch.randn(p.shape, generator=generator).contiguous(
                memory_format=torch.channels_last
            )
            ours.step()
        found.append(p.detach().contiguous())
    assert same_bits(*found)


def trained(model, optimizer, steps, whole=None, seed=2):
    """Step with the gradients of one process, of which each takes its shard."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in model.parameters():
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = g if whole is None else distribute_tensor(g, whole, p.placements)
        optimizer.step()


def sharded(mesh, state_dtype):
    torch.manual_seed(0)
    # 67 rows are no whole number of blocks in either half.
    model = torch.nn.Sequential(torch.nn.Linear(100, 67), torch.nn.Linear(67, 80)).to(NARROW)
    if mesh is not None:
        for part in (*model, model):
            fully_shard(part, mesh=mesh)
    return model, AdamW(model.parameters(), rounding="exact", state_dtype=state_dtype)


def go_on_in_two(path, state_dtype):
    mesh = init_device_mesh("cpu", (2,))
    model, optimizer = sharded(mesh, state_dtype)
    load(path, model, optimizer)
    trained(model, optimizer, 3, mesh, seed=3)
    save(path, model, optimizer)


def save(path, model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"weights": weights, "state": state}, checkpoint_id=path)


def load(path, model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    checkpoint.load({"weights": weights, "state": state}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("state_dtype", ["float32", "8bit"])
def test_a_run_goes_from_one_process_to_two_and_back(tmp_path, state_dtype):
    path = str(tmp_path / "checkpoint")
    model, optimizer = sharded(None, state_dtype)
    trained(model, optimizer, 3)
    save(path, model, optimizer)
    in_two_processes(go_on_in_two, path, state_dtype)
    copied, resumed = sharded(None, state_dtype)
    load(path, copied, resumed)
    truth, alone = sharded(None, "float32")
    for steps, seed in ((3, 2), (3, 3), (2, 4)):
        trained(truth, alone, steps, seed=seed)
    trained(copied, resumed, 2, seed=4)
    begun = sharded(None, state_dtype)[0]
    for p, q, start in zip(*(m.parameters() for m in (copied, truth, begun)), strict=True):
        found = joined(p.detach().float(), resumed.state[p]["remainder"].float())
        right = joined(q.detach().float(), alone.state[q]["remainder"].float())
        if state_dtype == "float32" or p.numel() < 4096:
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-8)
        else:
            way = (right - start.detach().float()).norm()
            assert 0 < (found - right).norm() < 0.03 * way
