"""Clipping of optimizers that have none, against torch.nn.utils.clip_grad_norm_ before the step."""

import copy
import io
import pickle

import pytest
import torch
from support.labels import label
from support.processes import in_two_processes
from support.tensors import same_weights
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from transformers import Adafactor

from optimplug import ArgumentError, Horizon, Recipe
from optimplug.recipe.clipped import class_of, clip_steps, leave_steps

MAX = 0.5


class Swallowing(torch.optim.SGD):
    """Takes any keyword, hands on those of its base, and leaves the rest unread."""

    def __init__(self, params, wait=0, **kwargs):
        known = ("lr", "momentum", "weight_decay", "nesterov")
        super().__init__(params, **{k: v for k, v in kwargs.items() if k in known})


class Clipping(torch.optim.SGD):
    """Has clipping of its own."""

    def __init__(self, params, lr=0.1, max_grad_norm=0.25):
        super().__init__(params, lr)
        self.own = max_grad_norm


class WithoutClosure(torch.optim.Optimizer):
    """Its step takes nothing, and it moves by the gradient."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


BOTH = ("bare", "closure")
OPTIMIZERS = [  # and how each can be stepped
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, BOTH),
    (torch.optim.AdamW, {"lr": 0.1}, BOTH),
    (torch.optim.AdamW, {"lr": 0.1, "foreach": True}, BOTH),
    (torch.optim.AdamW, {"lr": 0.1, "fused": True}, BOTH),
    (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}, ["closure"]),
    (Adafactor, {"lr": 0.1, "scale_parameter": False, "relative_step": False}, BOTH),
    (Swallowing, {"lr": 0.1, "momentum": 0.9}, BOTH),
    (WithoutClosure, {"lr": 0.1}, ["bare"]),
]
CASES = [(cls, settings, way) for cls, settings, ways in OPTIMIZERS for way in ways]
GROUPS = [{"match": "0.*", "lr_scale": 0.5}]


def named(cls):
    """The name by which a recipe finds a class."""
    found = getattr(torch.optim, cls.__name__, None) is cls
    return f"torch.optim.{cls.__name__}" if found else f"{cls.__module__}.{cls.__qualname__}"


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def clipping(cls, settings, model, **more):
    """An optimizer as a recipe builds it."""
    recipe = Recipe.load(
        {
            "optimizer": {"name": named(cls), **settings, "max_grad_norm": MAX, **more},
            "groups": [] if cls is torch.optim.LBFGS else GROUPS,
        }
    )
    return recipe.build(model, Horizon(total_steps=10))[0]


def reference(cls, settings, model):
    """The same, of the plain class."""
    parts = [{"params": list(model[0].parameters()), "lr": settings["lr"] * 0.5}, {}]
    parts[1]["params"] = list(model[2].parameters())
    return cls(model.parameters() if cls is torch.optim.LBFGS else parts, **settings)


@torch.enable_grad()  # which Adafactor leaves to the closure
def backward(model, step, factor=1.0):
    generator = torch.Generator().manual_seed(step)
    loss = model(torch.randn(5, 3, generator=generator)).square().sum() * factor * (step + 0.01)
    model.zero_grad()
    loss.backward()
    return loss


def clip_as_torch(model):
    return torch.nn.utils.clip_grad_norm_(model.parameters(), MAX)


@pytest.mark.parametrize(("cls", "settings", "way"), CASES, ids=label)
def test_it_clips_as_torch_does_before_the_step(cls, settings, way):
    ours, theirs = build_model(), build_model()
    optimizer, plain = clipping(cls, settings, ours), reference(cls, settings, theirs)
    for step in range(4):
        norms = []

        def theirs_once(step=step, norms=norms):
            loss = backward(theirs, step)
            norms.append(clip_as_torch(theirs))
            return loss

        if way == "closure":
            found = optimizer.step(lambda step=step: backward(ours, step))
            assert torch.equal(found, plain.step(theirs_once))
        else:
            backward(ours, step)
            optimizer.step()
            theirs_once()
            plain.step()
        assert torch.equal(optimizer.grad_norm, norms[-1])
    assert same_weights(ours, theirs)
    assert max(norms) > MAX, "or nothing was clipped"


def test_it_is_of_its_class_but_for_the_name():
    plain = torch.optim.AdamW(build_model().parameters())
    optimizer = clipping(torch.optim.AdamW, {"lr": 0.1}, build_model())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert class_of(optimizer) is class_of(plain) is torch.optim.AdamW
    cls = type(optimizer)
    # A second class of the same name would be taken for it, by command lines among others.
    assert (cls.__name__, cls.__doc__) == ("ClippedAdamW", torch.optim.AdamW.__doc__)
    assert optimizer.state_dict().keys() == plain.state_dict().keys()
    assert type(clipping(torch.optim.AdamW, {"lr": 0.2}, build_model())) is cls


def test_hooks_are_called_once_for_each_step():
    model, calls = build_model(), []
    optimizer = clipping(torch.optim.SGD, {"lr": 0.1}, model, skip_nonfinite=True)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())  # after which torch sees to its hooks again
    for factor in (1.0, float("inf")):  # the second step is left out, and was a step
        backward(model, 1, factor)
        optimizer.step()
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("closing", [False, True], ids=["bare", "closure"])
def test_steps_that_are_not_finite_are_left_out(closing):
    model, calls = build_model(), []
    optimizer = clipping(torch.optim.AdamW, {"lr": 0.1}, model, skip_nonfinite=True)

    def closure(factor):
        calls.append(factor)
        return backward(model, 1, factor)

    before = copy.deepcopy(model)
    for done, factor in enumerate([float("nan"), float("inf"), 1.0], start=1):
        if closing:
            assert optimizer.step(lambda factor=factor: closure(factor)) is not None
        else:
            closure(factor)
            assert optimizer.step() is None
        assert len(calls) == done
        assert optimizer.skipped_steps == min(done, 2)
        assert same_weights(model, before) is (done < 3)
        assert bool(optimizer.state) is (done == 3)


def test_an_optimizer_that_has_moved_within_its_step_finishes_it():
    model, calls = build_model(), []
    optimizer = clipping(torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}, model, skip_nonfinite=True)

    def closure():
        calls.append(None)
        return backward(model, 1, 1.0 if len(calls) == 1 else float("inf"))

    optimizer.step(closure)
    assert len(calls) > 1
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])  # noqa: S301
def test_a_copy_clips_as_well(copied):
    model = build_model()
    optimizer = clipping(torch.optim.AdamW, {"lr": 0.1}, model, skip_nonfinite=True)
    backward(model, 1, float("inf"))
    optimizer.step()
    found = copied(optimizer)
    assert type(found) is type(optimizer)
    assert (found.max_grad_norm, found.skip_nonfinite, found.skipped_steps) == (MAX, True, 1)
    params = [p for group in found.param_groups for p in group["params"]]
    for p in params:
        p.grad = torch.full_like(p, 100.0)
    found.step()
    assert torch.nn.utils.get_total_norm([p.grad for p in params]) == pytest.approx(MAX)
    assert optimizer.skipped_steps == 1


def test_a_class_that_is_derived_from_it_is_copied_as_itself():
    """As Lightning derives one from whatever optimizer it is given."""
    optimizer = clipping(torch.optim.SGD, {"lr": 0.1}, build_model())
    optimizer.__class__ = derived = type("Derived", (type(optimizer),), {})
    found = copy.deepcopy(optimizer)
    assert type(found) is derived


def test_states_go_to_and_from_the_plain_class():
    model = build_model()
    optimizer = clipping(torch.optim.AdamW, {"lr": 0.1}, model)
    backward(model, 1)
    optimizer.step()
    plain = reference(torch.optim.AdamW, {"lr": 0.1}, build_model())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    optimizer.load_state_dict(plain.state_dict())
    backward(model, 1)
    optimizer.step()
    assert optimizer.grad_norm > MAX
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) == pytest.approx(MAX)


def test_closing_a_run_gives_the_class_back():
    model = build_model()
    recipe = {"optimizer": {"name": "torch.optim.SGD", "lr": 1.0, "max_grad_norm": MAX}}
    with Recipe.load(recipe).start(model, Horizon(total_steps=10)) as run:
        kept = run.optimizer.step
        assert type(run.optimizer) is not torch.optim.SGD
        backward(model, 1)
        run.optimizer.step()
        assert run.optimizer.grad_norm > MAX
    assert type(run.optimizer) is torch.optim.SGD
    assert not {"max_grad_norm", "grad_norm"} & vars(run.optimizer).keys()
    leave_steps(run.optimizer)  # twice is as once
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    for step in (run.optimizer.step, kept, lambda: kept(lambda: None)):
        backward(model, 1)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        before = [p.detach().clone() for p in model.parameters()]
        step()
        moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(norm.item())


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_the_norm_is_that_of_the_true_gradients(fused):
    ours, theirs = build_model(), build_model()
    settings = {"lr": 0.1, "fused": fused}
    optimizer = clipping(torch.optim.AdamW, settings, ours)
    plain = reference(torch.optim.AdamW, settings, theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(1, 4):
        scaler.scale(torch.zeros(()))  # which makes the scale
        backward(ours, step, scaler.get_scale())
        if not fused:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        backward(theirs, step)
        norm = clip_as_torch(theirs)
        plain.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_class_that_clips_by_itself_is_left_to_it():
    recipe = {"optimizer": {"name": named(Clipping), "max_grad_norm": 2.0}}
    optimizer = Recipe.load(recipe).build_optimizer(build_model())
    assert type(optimizer) is Clipping
    assert optimizer.own == 2.0
    assert Recipe.load({"optimizer": {"name": named(Clipping)}}).max_grad_norm == 0.25


def test_ours_clip_by_themselves():
    optimizer = Recipe.load({"optimizer": {"name": "SGD", "lr": 1.0, "max_grad_norm": MAX}})
    built = optimizer.build_optimizer(build_model())
    assert class_of(built) is type(built)
    clip_steps(built, max_grad_norm=2 * MAX)
    assert class_of(built) is type(built)
    assert built.max_grad_norm == 2 * MAX


def test_nothing_is_put_on_where_nothing_is_asked_for():
    recipe = {"optimizer": {"name": "torch.optim.SGD", "lr": 1.0, "max_grad_norm": None}}
    assert type(Recipe.load(recipe).build_optimizer(build_model())) is torch.optim.SGD
    with pytest.raises(ArgumentError, match="Invalid max_grad_norm: -1"):
        clip_steps(torch.optim.SGD(build_model().parameters()), max_grad_norm=-1)


def test_frozen_groups_are_no_part_of_the_norm():
    model = build_model()
    recipe = Recipe.load(
        {
            "optimizer": {"name": "torch.optim.SGD", "lr": 0.1, "max_grad_norm": MAX},
            "groups": [{"match": "0.*", "freeze": {"until": 5}}],
        }
    )
    optimizer, _ = recipe.build(model, Horizon(total_steps=10))
    for step in (lambda: optimizer.step(lambda: backward(model, 1)), optimizer.step):
        backward(model, 1)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model[2].parameters()])
        step()
        assert torch.equal(optimizer.grad_norm, norm)


RECIPE = {"optimizer": {"name": "torch.optim.AdamW", "lr": 0.1, "max_grad_norm": MAX}}


def whole_run(model):
    with Recipe.load(RECIPE).start(model, Horizon(total_steps=3)) as run:
        norms = []
        for step in range(1, 4):
            backward(model, step)
            run.step()
            norms.append(run.optimizer.grad_norm)
    return norms


def refusal_of_flat_parameters(use_orig_params):
    cpu = torch.device("cpu")
    flat = FullyShardedDataParallel(build_model(), device_id=cpu, use_orig_params=use_orig_params)
    try:
        whole_run(flat)
    except ArgumentError as error:
        return str(error)
    return None


def train_sharded():
    """Two processes with half of each parameter; and with flat ones, which must be refused."""
    model = build_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    norms = whole_run(model)
    assert not any(isinstance(norm, DTensor) for norm in norms)
    weights = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    refused = [refusal_of_flat_parameters(kept) for kept in (False, True)]
    return norms, weights, refused


@pytest.mark.slow
def test_of_sharded_parameters_the_norm_is_that_of_the_whole():
    alone = build_model()
    expected = whole_run(alone)
    for norms, weights, refused in in_two_processes(train_sharded):
        torch.testing.assert_close(norms, expected)
        torch.testing.assert_close(weights, dict(alone.named_parameters()))
        assert all("(FSDP2)" in text for text in refused)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, as it traces torch
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("closing", [False, True], ids=["bare", "closure"])
def test_a_compiled_train_step_clips_and_tells_the_norm(closing):
    ours, theirs = build_model(), build_model()
    optimizer = clipping(torch.optim.SGD, {"lr": 0.1}, ours)
    plain = reference(torch.optim.SGD, {"lr": 0.1}, theirs)

    def loss_of(model, x):
        model.zero_grad()
        loss = model(x).square().sum() * 10
        loss.backward()
        return loss

    def train(x):
        if closing:
            optimizer.step(lambda: loss_of(ours, x))
        else:
            loss_of(ours, x)
            optimizer.step()

    compiled = torch.compile(train, backend="eager")
    for step in range(1, 4):
        x = torch.full((2, 3), float(step))
        compiled(x)
        loss_of(theirs, x)
        norm = clip_as_torch(theirs)
        plain.step()
        torch.testing.assert_close(optimizer.grad_norm, norm)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)
