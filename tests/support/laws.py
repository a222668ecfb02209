"""The laws that hold for every optimizer, and what an optimizer does instead where one does not.

A law is a function of a class; it fails where the class breaks it. :data:`ROWS` says how a class is
built, and which laws it refuses. Both together are a table of ``docs/optimizers.md``.
"""

import copy
import inspect
import io
import pickle
from typing import Any, NamedTuple

import torch
from support.tensors import same_bits
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from optimplug import optim
from optimplug.optim import Optimizer
from optimplug.recipe.resolve import optimizer_names

STEPS = 6


class Refusal(NamedTuple):
    """Why a law is none for an optimizer, which says so itself where it is asked for it."""

    reason: str
    """For the table."""
    message: str
    """What its error says; a regular expression."""


class Row(NamedTuple):
    """How the laws are tried on one optimizer."""

    options: dict[str, Any] = {}
    """What it is built with; by default nothing but what it requires."""
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (7,), (5, 5, 2), (1,))
    refuses: dict[str, Refusal] = {}
    """By the name of the law."""


NO_MAXIMIZE = {"maximize": Refusal("has no maximize", "unexpected keyword argument 'maximize'")}
NO_COMPLEX = {"complex": Refusal("takes no complex numbers", "complex")}
ROWS = {
    "SGD": Row({"lr": 0.05, "momentum": 0.9}),
    "Adadelta": Row({"lr": 1.0}),
    "Adagrad": Row({"lr": 0.05}),
    "Adam": Row({"lr": 0.05}),
    "AdamW": Row({"lr": 0.05}),
    "NAdam": Row({"lr": 0.05}),
    "ASGD": Row({"lr": 0.05, "t0": 2}),
    "Adafactor": Row({"lr": 0.05}, refuses=NO_COMPLEX),
    "Muon": Row(
        {"lr": 0.05},
        ((3, 4), (5, 7), (4, 4), (2, 3, 2, 2)),
        {
            **NO_COMPLEX,
            **NO_MAXIMIZE,
            "zero dimensions": Refusal("is for matrices", "only supports 2D"),
        },
    ),
    "Adamax": Row({"lr": 0.05}),
    "Lion": Row({"lr": 0.05}),
    "RAdam": Row({"lr": 0.05}),
    "RMSprop": Row({"lr": 0.05}),
    "Rprop": Row({"lr": 0.05}),
}


def public():
    """Every optimizer that has a name in ``optimplug.optim``."""
    found = [getattr(optim, name) for name in sorted(optimizer_names(), key=str.lower)]
    return [cls for cls in found if issubclass(cls, Optimizer)]


def row_of(cls):
    return ROWS[cls.__name__]


def choices(cls):
    """How the laws are run: as the optimizer chooses, and through torch's operators."""
    return [{}, {"foreach": True}] if "foreach" in inspect.signature(cls).parameters else [{}]


# A run under the laws: parameters and gradients are always the same, so that runs can be compared.


def tensors(cls, seed=1, shapes=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = row_of(cls).shapes if shapes is None else shapes
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def build(cls, params, **options):
    return ready(cls(params, **{**row_of(cls).options, **options}))


def ready(optimizer):
    if hasattr(optimizer, "train"):  # schedule-free ones begin in the mode of validation
        optimizer.train()
    return optimizer


def gradient(p, step, place):
    generator = torch.Generator().manual_seed(1000 * step + place)
    return torch.randn(p.shape, generator=generator).to(p.dtype)


def give(params, step, missing=()):
    """Put this step's gradients on the parameters; some have none."""
    for place, p in enumerate(params):
        p.grad = None if place in missing else gradient(p, step, place)


def train(optimizer, steps, missing=lambda step: ()):
    params = flat(optimizer)
    for step in steps:
        give(params, step, missing(step))
        optimizer.step()
    return params


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def copied(params):
    return [nn.Parameter(p.detach().clone()) for p in params]


def snapshot(optimizer):
    """All that a step may change, with the order of its keys."""
    return copy.deepcopy(([p.detach() for p in flat(optimizer)], _plain(optimizer.state_dict())))


def _plain(value):
    if isinstance(value, dict):
        return [(key, _plain(part)) for key, part in value.items()]
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def unmoved(after, before):
    """Whether all is as it was, but that states may have begun, with what they begin with."""
    (params, state), (was, had) = after, before
    return same(params, was) and (same(state, had) or not dict(had)["state"])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same_bits(a, b)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def all_same_bits(some, others):
    return len(some) == len(others) and all(map(same_bits, some, others))


def assert_close(some, others):
    torch.testing.assert_close(
        [p.detach() for p in some], [p.detach() for p in others], rtol=1e-5, atol=1e-6
    )


def stored(state):
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# The laws.


def clipping(cls, **choice):
    """`max_grad_norm` is `clip_grad_norm_`, then the step"""
    ours = build(cls, tensors(cls), max_grad_norm=0.5, **choice)
    plain = build(cls, tensors(cls), **choice)
    for step in range(STEPS):
        train(ours, [step])
        give(flat(plain), step)
        norm = nn.utils.clip_grad_norm_(flat(plain), 0.5)
        plain.step()
        torch.testing.assert_close(ours.grad_norm, norm)
        assert all(
            map(
                torch.equal,
                [p.grad for p in flat(ours)],
                [gradient(p, step, i) for i, p in enumerate(flat(ours))],
            )
        )
    assert_close(flat(ours), flat(plain))


def skip_nonfinite(cls, **choice):
    """`skip_nonfinite` leaves all as it was"""
    for at in (0, 3):
        ours = build(cls, tensors(cls), skip_nonfinite=True, **choice)
        twin = build(cls, tensors(cls), skip_nonfinite=True, **choice)
        train(ours, range(at)), train(twin, range(at))
        before = snapshot(ours)
        for bad in (float("inf"), float("nan")):
            give(flat(ours), 99)
            flat(ours)[-1].grad.view(-1)[0] = bad
            ours.step()
        assert unmoved(snapshot(ours), before)
        assert ours.skipped_steps == 2
        train(ours, range(at, STEPS)), train(twin, range(at, STEPS))
        assert same(snapshot(ours), snapshot(twin))


def grad_scaler(cls, **choice):
    """GradScaler: unscaled, and left out where it found infinities"""
    fused = [{"fused": True}] if "fused" in inspect.signature(cls).parameters else []
    for way in (choice, *fused):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        ours, plain = build(cls, tensors(cls), **way), build(cls, tensors(cls), **way)
        for step in range(STEPS):
            give(flat(ours), step)
            for p in flat(ours):
                p.grad = scaler.scale(p.grad)
            overflows = step in (0, 3)
            if overflows:
                flat(ours)[0].grad.view(-1)[0] = float("inf")
                before = snapshot(ours)
            scaler.step(ours)
            scaler.update()
            if overflows:
                assert unmoved(snapshot(ours), before)
            else:
                train(plain, [step])
        assert scaler.get_scale() == 256
        assert_close(flat(ours), flat(plain))


def resume(cls, **choice):
    """a state saved at any step goes on to the last bit, through `torch.load(weights_only=True)`"""
    whole = train(build(cls, tensors(cls), **choice), range(STEPS), missing_now_and_then)
    for at in range(STEPS):
        first = build(cls, tensors(cls), **choice)
        train(first, range(at), missing_now_and_then)
        then = build(cls, copied(flat(first)), **choice)
        then.load_state_dict(stored(first.state_dict()))
        assert same(snapshot(then), snapshot(first))
        assert all_same_bits(train(then, range(at, STEPS), missing_now_and_then), whole)


def missing_now_and_then(step):
    return {step % 5, 3 if step == 0 else None}


def deepcopy(cls, **choice):
    """a `deepcopy` goes on by itself"""
    _goes_on(cls, copy.deepcopy, choice)


def pickled(cls, **choice):
    """a pickle goes on by itself"""
    _goes_on(cls, lambda optimizer: pickle.loads(pickle.dumps(optimizer)), choice)  # noqa: S301


def _goes_on(cls, way, choice):
    ours = build(cls, tensors(cls), max_grad_norm=0.5, skip_nonfinite=True, **choice)
    train(ours, range(3))
    twin, before = way(ours), snapshot(ours)
    train(twin, range(3, STEPS))
    assert same(snapshot(ours), before)
    train(ours, range(3, STEPS))
    assert same(snapshot(ours), snapshot(twin))
    assert (twin.max_grad_norm, twin.skip_nonfinite) == (0.5, True)


def added_groups(cls, **choice):
    """a group that joins in mid-run begins as in an optimizer of its own"""
    ours = build(cls, tensors(cls), **choice)
    train(ours, range(3))
    late = tensors(cls, seed=7)
    ours.add_param_group({"params": late, "lr": 0.02})
    alone = build(cls, tensors(cls), **choice)
    train(alone, range(3))
    joins = build(cls, copied(late), **{"lr": 0.02}, **choice)
    for step in range(3, STEPS):
        give(flat(ours), step)
        for p, q in zip(flat(ours), [*flat(alone), *flat(joins)], strict=True):
            q.grad = p.grad.clone()
        for optimizer in (ours, alone, joins):
            optimizer.step()
    assert_close(flat(ours), [*flat(alone), *flat(joins)])


def missing_gradients(cls, **choice):
    """without a gradient, a parameter and its state stay as they are"""
    ours = build(cls, tensors(cls), **choice)
    train(ours, range(2), lambda _: {1})
    still = flat(ours)[0]
    before = copy.deepcopy((still.detach(), _plain(ours.state[still])))
    never, begun = flat(ours)[1], tensors(cls)[1]
    train(ours, range(2, 4), lambda _: {0, 1})
    assert same((still.detach(), _plain(ours.state[still])), before)
    assert same_bits(never, begun)
    assert all(
        not isinstance(v, torch.Tensor) or v.any() == 0 for v in ours.state.get(never, {}).values()
    )
    give(flat(ours), 0, range(len(flat(ours))))
    before = snapshot(ours)
    ours.step()
    assert same(snapshot(ours), before)


def groups(cls, **choice):
    """groups with settings of their own are as optimizers of their own"""
    params, settings = tensors(cls), ({"lr": 0.1}, {"lr": 0.01}, {})
    if "weight_decay" in inspect.signature(cls).parameters:
        settings = ({"lr": 0.1}, {"lr": 0.01, "weight_decay": 0.3}, {"weight_decay": 0.0})
    parts = (params[:1], params[1:2], params[2:])
    ours = build(
        cls, [{"params": p, **own} for p, own in zip(parts, settings, strict=True)], **choice
    )
    apart = [build(cls, copied(p), **own, **choice) for p, own in zip(parts, settings, strict=True)]
    for step in range(STEPS):
        give(flat(ours), step, {3} if step % 3 == 0 else ())
        twins = [q for optimizer in apart for q in flat(optimizer)]
        for p, q in zip(flat(ours), twins, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        for optimizer in (ours, *apart):
            optimizer.step()
    assert_close(flat(ours), [q for optimizer in apart for q in flat(optimizer)])


def maximize(cls, **choice):
    """`maximize` is a step along the gradients' negative"""
    ours = build(cls, tensors(cls), maximize=True, **choice)
    plain = build(cls, tensors(cls), **choice)
    for step in range(STEPS):
        train(ours, [step])
        give(flat(plain), step)
        for p in flat(plain):
            p.grad.neg_()
        plain.step()
    assert_close(flat(ours), flat(plain))


def zero_size(cls, **choice):
    """a parameter without elements changes nothing"""
    some = row_of(cls).shapes
    empty = tuple(0 if i == 0 else side for i, side in enumerate(some[0]))
    ours = build(cls, tensors(cls, shapes=(*some, empty)), max_grad_norm=0.5, **choice)
    plain = build(cls, tensors(cls), max_grad_norm=0.5, **choice)
    train(ours, range(STEPS)), train(plain, range(STEPS))
    assert all_same_bits(flat(ours)[:-1], flat(plain))
    assert flat(ours)[-1].shape == empty
    again = build(cls, copied(flat(ours)), max_grad_norm=0.5, **choice)
    again.load_state_dict(stored(ours.state_dict()))
    assert all_same_bits(train(again, [9]), train(ours, [9]))


def zero_dim(cls, **choice):
    """a parameter without dimensions steps as one of a single element"""
    ours = build(cls, tensors(cls, shapes=((),)), **choice)
    plain = build(cls, tensors(cls, shapes=((1,),)), **choice)
    (p,), (q,) = train(ours, range(STEPS)), train(plain, range(STEPS))
    assert p.shape == ()
    torch.testing.assert_close(p.detach(), q.detach()[0])


def complex_numbers(cls, **choice):
    """complex parameters step as pairs of real ones"""
    real = tensors(cls, shapes=((3, 2, 2), (2, 3, 2)))
    pairs = [nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in real]
    ours = build(cls, pairs, **choice)
    for step in range(STEPS):
        for i, (p, q) in enumerate(zip(flat(ours), real, strict=True)):
            p.grad = torch.view_as_complex(gradient(q, step, i))
        ours.step()
    plain = build(cls, real, **choice)
    train(plain, range(STEPS))
    assert_close([torch.view_as_real(p.detach()) for p in flat(ours)], flat(plain))


def bfloat16(cls, **choice):
    """bfloat16 weights go where float32 ones go, within their precision"""
    ours = build(cls, tensors(cls, dtype=torch.bfloat16), **choice)
    start = [p.detach().float() for p in flat(ours)]
    plain = build(cls, [nn.Parameter(p.clone()) for p in start], **choice)
    for step in range(STEPS):
        train(ours, [step])
        for p, q in zip(flat(ours), flat(plain), strict=True):
            q.grad = p.grad.float()
        plain.step()
    assert all(p.dtype == torch.bfloat16 for p in flat(ours))
    # All of them together: a single element may turn its back, where its step is a sign.
    moved, right, size = (
        torch.cat([t.detach().float().flatten() for t in some])
        for some in (
            [p.float() - s for p, s in zip(flat(ours), start, strict=True)],
            [q - s for q, s in zip(flat(plain), start, strict=True)],
            start,
        )
    )
    assert (moved - right).norm() <= 0.3 * right.norm() + 0.01 * size.norm()
    assert 0.8 * right.norm() <= moved.norm() <= 1.25 * right.norm()


def key_order(cls, **choice):
    """the keys of a state dict keep their order, also through a resume"""
    fresh = build(cls, tensors(cls), **choice)
    group_keys = [list(group) for group in fresh.state_dict()["param_groups"]]
    ours = build(cls, tensors(cls), **choice)
    train(ours, range(STEPS), missing_now_and_then)
    then = build(cls, copied(flat(ours)), **choice)
    then.load_state_dict(stored(ours.state_dict()))
    train(then, range(2))
    for optimizer in (ours, then):
        found = optimizer.state_dict()
        assert [list(group) for group in found["param_groups"]] == group_keys
        orders = {tuple(kept) for kept in found["state"].values()}
        assert len(orders) == len(set(map(frozenset, orders)))
    assert [list(s) for s in ours.state_dict()["state"].values()] == [
        list(s) for s in then.state_dict()["state"].values()
    ]


def moved_by_data(cls, **choice):
    """a parameter moved by `.data` steps from where it is"""
    ours, plain = build(cls, tensors(cls), **choice), build(cls, tensors(cls), **choice)
    train(ours, range(3)), train(plain, range(3))
    for p, q in zip(flat(ours), flat(plain), strict=True):
        p.data = p.detach().clone() + 1
        with torch.no_grad():
            q.add_(1)
    assert all_same_bits(train(ours, range(3, STEPS)), train(plain, range(3, STEPS)))


def sharded(cls, mesh=None):
    """two processes with a shard each (DTensor, uneven) learn what one does"""

    def placed(value, place):
        if mesh is None:
            return value.clone()
        form = Replicate() if place == 1 else Shard(0)
        return distribute_tensor(value.clone(), mesh, [form])

    values = [p.detach() for p in tensors(cls)]
    params = [nn.Parameter(placed(value, i)) for i, value in enumerate(values)]
    ours = build(cls, params, max_grad_norm=0.5, skip_nonfinite=True)
    for step in range(STEPS):
        for i, (p, value) in enumerate(zip(params, values, strict=True)):
            g = gradient(value, step, i)
            if step == 3 and i == 0:
                g.view(-1)[-1] = float("inf")  # of the last process alone, but none may step
            p.grad = placed(g, i)
        ours.step()
    assert ours.skipped_steps == 1
    return [p.detach().full_tensor() if mesh else p.detach() for p in params]


LAWS = {
    "clipping": clipping,
    "skip_nonfinite": skip_nonfinite,
    "GradScaler": grad_scaler,
    "resume": resume,
    "deepcopy": deepcopy,
    "pickle": pickled,
    "added groups": added_groups,
    "missing gradients": missing_gradients,
    "groups": groups,
    "maximize": maximize,
    "zero size": zero_size,
    "zero dimensions": zero_dim,
    "complex": complex_numbers,
    "bfloat16": bfloat16,
    "order of keys": key_order,
    "moved by .data": moved_by_data,
}
IN_TWO_PROCESSES = {"two processes": sharded}
