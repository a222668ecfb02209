"""Rules that look at whole tensors or matrices, where every process has only parts of them."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.labels import label
from support.processes import in_two_processes
from support.rows import each_in_turn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from optimplug import ArgumentError, optim
from optimplug._core.optim.group_checks import StandIn

# One is run by a closure, and what the other runs is here by itself.
APART = {optim.LBFGS, optim.MultiOptimizer}


def whole_classes():
    """Every public optimizer with a rule that needs more than an element, as it comes."""
    names = [getattr(optim, name) for name in optim.__all__]
    classes = [c for c in names if isinstance(c, type) and issubclass(c, optim.Optimizer)]
    return [c for c in classes if c not in {optim.Optimizer, *APART} and scope(c) != "element"]


def rule_of(cls, **options):
    optimizer = cls([StandIn(torch.zeros(1, 1))], **options)
    return optimizer.rule(optimizer.param_groups[0])


def scope(cls):
    return rule_of(cls).scope


# What else of each is worth trying: its other ways through the math.
MORE = {
    optim.LAMB: [{"always_adapt": True, "weight_decay": 0.0, "lr": 0.05}],
    optim.StableAdamW: [{"lr": 0.05, "betas": (0.5, 0.9)}],
    optim.CAME: [{"lr": 0.05, "weight_decay": 0.1}],
    optim.TransformersAdafactor: [
        {"beta1": 0.9, "weight_decay": 0.1},
        {"lr": 0.05, "relative_step": False, "scale_parameter": False},
    ],
    optim.Adafactor: [{"lr": 0.05, "maximize": True}],
    optim.Muon: [
        {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.05, "adjust_lr_fn": "rms_to_rms", "transposed": True},
        {"lr": 0.05, "split": 3, "transposed": True},
    ],
}
CASES = [(cls, options) for cls in whole_classes() for options in ({}, *MORE.get(cls, []))]
EXECUTIONS = [{}, {"foreach": True}, {"foreach": False}]

# Cut evenly and not, one with nothing at all for the second process; whole in each; and plain.
FORMS = [
    ((6, 5), [Shard(0)]),
    ((5, 3), [Shard(0)]),
    ((3, 7), [Shard(1)]),
    ((1, 6), [Shard(0)]),
    ((5, 3, 2, 2), [Shard(0)]),
    ((3, 4, 3, 2), [Shard(2)]),
    ((2, 3, 5, 3), [Shard(3)]),
    ((7,), [Shard(0)]),
    ((9,), [Replicate()]),
    ((2, 3), [Replicate()]),
    ((), [Replicate()]),
    ((4, 7), None),
    # On a mesh of two dimensions, one of which has all processes.
    ((8, 3), [Replicate(), Shard(0)]),
    ((3, 8), [Shard(0), Shard(1)]),
]
STEPS = 4


def chosen(cls, options):
    """The forms that a class takes."""
    rule = rule_of(cls, **options)
    shapes = [torch.empty(shape) for shape, _ in FORMS]
    return [
        form for form, p in zip(FORMS, shapes, strict=True) if rule.suited(p).refusal(p) is None
    ]


def start(forms, meshes=None):
    """Parameters of these forms, and what puts a tensor into the form of each."""

    def formed(i, value):
        placements = forms[i][1]
        if meshes is None or placements is None:
            return value.clone()
        return distribute_tensor(value, meshes[len(placements)], placements)

    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape, _ in forms]
    return [torch.nn.Parameter(formed(i, value)) for i, value in enumerate(values)], formed


def run(optimizer, params, formed, steps=range(STEPS)):
    """Step with gradients that are the same everywhere; each is missing now and then."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(params):
            value = torch.randn(p.shape, generator=generator) * 10.0**step
            p.grad = None if (step + i) % 4 == 3 else formed(i, value)
        optimizer.step()
    return [whole(p).detach() for p in params]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def meshes_of(size):
    return {1: init_device_mesh("cpu", (size,)), 2: init_device_mesh("cpu", (1, size))}


def learnt(cls, options, execution, meshes=None):
    params, formed = start(chosen(cls, options), meshes)
    return run(cls(params, **options, **execution), params, formed)


def check(found, cls, options):
    """Hold weights against those of plain tensors, one after the other."""
    for a, b in zip(found, learnt(cls, options, {"foreach": False}), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield meshes_of(1)
    dist.destroy_process_group()


def test_the_classes_are_found():
    assert {optim.StableAdamW, optim.LAMB, optim.CAME, optim.TransformersAdafactor} <= set(MORE)
    assert set(MORE) <= set(whole_classes())


@pytest.mark.parametrize(
    ("cls", "options", "execution"), each_in_turn(CASES, EXECUTIONS), ids=label
)
def test_one_process_with_a_mesh_is_as_one_without(meshes, cls, options, execution):
    check(learnt(cls, options, execution, meshes), cls, options)


@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_the_state_of_a_sharded_parameter_is_sharded(meshes, cls, options):
    params, formed = start(chosen(cls, options), meshes)
    optimizer = cls(params, **options)
    run(optimizer, params, formed)
    for p, kept in optimizer.state.items():
        tensors = {name: value for name, value in kept.items() if name != "step" and p.dim()}
        assert {type(value) for value in tensors.values()} <= {type(p.detach())}


@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_a_distributed_checkpoint_goes_on(meshes, tmp_path, cls, options):
    params, formed = start(chosen(cls, options), meshes)
    optimizer = cls(params, **options)
    run(optimizer, params, formed)
    dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path)

    others, _ = start(chosen(cls, options), meshes)
    resumed = cls(others, **options)
    run(resumed, others, formed, range(2))  # so that there is a state to load into
    with torch.no_grad():
        for p, q in zip(others, params, strict=True):
            p.copy_(q)
    loaded = {"optimizer": resumed.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path)
    resumed.load_state_dict(loaded["optimizer"])
    more = range(STEPS, STEPS + 3)
    found = run(resumed, others, formed, more), run(optimizer, params, formed, more)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("cls", whole_classes())
def test_a_flat_shard_is_refused_before_anything_changes(cls):
    plain, flat = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    flat._fsdp_flattened = True  # as FSDP's first version marks what it has flattened
    optimizer = cls([plain, flat])
    plain.grad, flat.grad = torch.ones(2, 2), torch.ones(2, 2)
    with pytest.raises(ArgumentError, match=r"flat shard.*fully_shard \(FSDP2\)"):
        optimizer.step()
    assert torch.equal(plain.detach(), torch.ones(2, 2))
    assert not optimizer.state


def train():
    """One of two processes: train with every class, and return what each has learnt."""
    meshes = meshes_of(2)
    return [
        learnt(cls, options, execution, meshes)
        for (cls, options), execution in itertools.product(CASES, EXECUTIONS)
    ]


@pytest.fixture(scope="module")
def of_two():
    """What either of two processes has learnt, by case and execution."""
    return in_two_processes(train)


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS, ids=label)
@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_two_processes_step_as_one_would(of_two, cls, options, execution):
    i = CASES.index((cls, options)) * len(EXECUTIONS) + EXECUTIONS.index(execution)
    for found in of_two:
        check(found[i], cls, options)
