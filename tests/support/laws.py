"""The laws that hold for every optimizer.

A law is a function of a class; it fails where the class breaks it. What an optimizer refuses is said
in :data:`support.optimizer_runs.ROWS`. Both together are a table of ``docs/optimizers.md``.
"""

import copy
import pickle

import torch
from support.optimizer_runs import (
    STEPS,
    all_same_bits,
    assert_close,
    build,
    clip,
    copied,
    flat,
    give,
    gradient,
    group_of,
    plain_values,
    row_of,
    same,
    snapshot,
    step,
    stored,
    takes,
    tensors,
    train,
    unmoved,
    values_of,
)
from support.tensors import same_bits
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from optimplug._core.optim.executions.bits import joined


def clipping(cls, **choice):
    """`max_grad_norm` is `clip_grad_norm_`, then the step"""
    ours = build(cls, tensors(cls), max_grad_norm=0.5, **choice)
    plain = build(cls, tensors(cls), **choice)
    for number in range(STEPS):
        train(ours, [number])
        give(cls, flat(plain), number)
        norm = clip(flat(plain), 0.5)
        step(plain)
        torch.testing.assert_close(ours.grad_norm, norm)
        assert all(
            map(
                torch.equal,
                [p.grad.to_dense() for p in flat(ours)],
                [gradient(p, number, i) for i, p in enumerate(flat(ours))],
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
            give(cls, flat(ours), 99)
            values_of(flat(ours)[-1])[0] = bad
            step(ours)
        assert unmoved(snapshot(ours), before)
        assert ours.skipped_steps == 2
        train(ours, range(at, STEPS)), train(twin, range(at, STEPS))
        assert same(snapshot(ours), snapshot(twin))


def grad_scaler(cls, **choice):
    """GradScaler: unscaled, and left out where it found infinities"""
    fused = [{"fused": True}] if takes(cls, "fused") else []
    for way in (choice, *fused):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        ours, plain = build(cls, tensors(cls), **way), build(cls, tensors(cls), **way)
        for number in range(STEPS):
            give(cls, flat(ours), number)
            for p in flat(ours):
                p.grad = scaler.scale(p.grad)
            overflows = number in (0, 3)
            if overflows:
                values_of(flat(ours)[0])[0] = float("inf")
                before = snapshot(ours)
            scaler.step(ours)
            scaler.update()
            if overflows:
                assert unmoved(snapshot(ours), before)
            else:
                train(plain, [number])
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


def missing_now_and_then(number):
    return {number % 5, 3 if number == 0 else None}


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
    ours.add_param_group(group_of(cls, params=late, lr=0.02))
    alone = build(cls, tensors(cls), **choice)
    train(alone, range(3))
    joins = build(cls, [{"params": copied(late), "lr": 0.02}], **choice)
    for number in range(3, STEPS):
        give(cls, flat(ours), number)
        for p, q in zip(flat(ours), [*flat(alone), *flat(joins)], strict=True):
            q.grad = p.grad.clone()
        for optimizer in (ours, alone, joins):
            step(optimizer)
    assert_close(flat(ours), [*flat(alone), *flat(joins)])


def _states(optimizer):
    return optimizer.state_dict()["state"].items()


def missing_gradients(cls, **choice):
    """without a gradient, a parameter and its state stay as they are"""
    ours = build(cls, tensors(cls), **choice)
    train(ours, range(2), lambda _: {1})
    still = flat(ours)[0]
    before = copy.deepcopy((still.detach(), plain_values(ours.state[still])))
    never, begun = flat(ours)[1], tensors(cls)[1]
    train(ours, range(2, 4), lambda _: {0, 1})
    assert same((still.detach(), plain_values(ours.state[still])), before)
    assert same_bits(never, begun)
    assert all(
        not isinstance(v, torch.Tensor) or v.any() == 0 for v in ours.state.get(never, {}).values()
    )
    give(cls, flat(ours), 0, range(len(flat(ours))))
    (params, _), state = snapshot(ours), copy.deepcopy(ours.state_dict()["state"])
    step(ours)  # a group may count it, as schedule-free's do
    assert same(snapshot(ours)[0], params)
    assert all(same(plain_values(v), plain_values(state[i])) for i, v in _states(ours))


def groups(cls, **choice):
    """groups with settings of their own are as optimizers of their own"""
    params, settings = tensors(cls), ({"lr": 0.1}, {"lr": 0.01}, {})
    if takes(cls, "weight_decay"):
        settings = ({"lr": 0.1}, {"lr": 0.01, "weight_decay": 0.3}, {"weight_decay": 0.0})
    parts = (params[:1], params[1:2], params[2:])
    ours = build(
        cls, [{"params": p, **own} for p, own in zip(parts, settings, strict=True)], **choice
    )
    apart = [
        build(cls, [group_of(cls, i, params=copied(p), **own)], **choice)
        for i, (p, own) in enumerate(zip(parts, settings, strict=True))
    ]
    for number in range(STEPS):
        give(cls, flat(ours), number, {3} if number % 3 == 0 else ())
        twins = [q for optimizer in apart for q in flat(optimizer)]
        for p, q in zip(flat(ours), twins, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        for optimizer in (ours, *apart):
            step(optimizer)
    assert_close(flat(ours), [q for optimizer in apart for q in flat(optimizer)])


def maximize(cls, **choice):
    """`maximize` is a step along the gradients' negative"""
    ours = build(cls, tensors(cls), maximize=True, **choice)
    plain = build(cls, tensors(cls), **choice)
    for number in range(STEPS):
        train(ours, [number])
        give(cls, flat(plain), number)
        for p in flat(plain):
            p.grad.neg_()
        step(plain)
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
    for number in range(STEPS):
        for i, (p, q) in enumerate(zip(flat(ours), real, strict=True)):
            p.grad = torch.view_as_complex(gradient(q, number, i))
        step(ours)
    plain = build(cls, real, **choice)
    train(plain, range(STEPS))
    assert_close([torch.view_as_real(p.detach()) for p in flat(ours)], flat(plain))


def bfloat16(cls, **choice):
    """bfloat16 weights go where float32 ones go, within their precision"""
    ours = build(cls, tensors(cls, dtype=torch.bfloat16), **choice)
    start = [p.detach().float() for p in flat(ours)]
    plain = build(cls, [nn.Parameter(p.clone()) for p in start], **choice)
    for number in range(STEPS):
        train(ours, [number])
        for p, q in zip(flat(ours), flat(plain), strict=True):
            q.grad = p.grad.float()
        step(plain)
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


def exact(cls, **choice):
    """`rounding="exact"`: bfloat16 weights with remainders are float32 ones to the last bit"""
    ours = build(cls, tensors(cls, dtype=torch.bfloat16), rounding="exact", **choice)
    plain = build(cls, [nn.Parameter(p.detach().float()) for p in flat(ours)], **choice)
    for number in range(STEPS):
        train(ours, [number], missing_now_and_then)
        for p, q in zip(flat(ours), flat(plain), strict=True):
            q.grad = None if p.grad is None else p.grad.float()
        step(plain)
        then = build(cls, copied(flat(ours)), rounding="exact", **choice)
        then.load_state_dict(stored(ours.state_dict()))
        ours = then
    for p, q in zip(flat(ours), flat(plain), strict=True):
        assert same_bits(joined(p.detach().float(), ours.state[p]["remainder"].float()), q)


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
    for number in range(STEPS):
        for i, (p, value) in enumerate(zip(params, values, strict=True)):
            g = gradient(value, number, i)
            if number == 3 and i == 0:
                g.view(-1)[-1] = float("inf")  # of the last process alone, but none may step
            p.grad = placed(g, i)
        step(ours)
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
    "exact": exact,
    "order of keys": key_order,
    "moved by .data": moved_by_data,
}
IN_TWO_PROCESSES = {"two processes": sharded}
