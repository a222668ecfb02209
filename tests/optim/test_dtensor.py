"""Sharded parameters, as FSDP2 leaves them, on a mesh of one process and of two."""

import pytest
import torch
import torch.distributed as dist
from support.labels import label
from support.processes import in_two_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from optimplug.optim import SGD, Adam, AdamW, MultiOptimizer, ScheduleFreeSGD


@pytest.mark.parametrize(
    "choice", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=label
)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_sharded_replicated_and_plain_tensors_step_together(mesh, cls, clip, choice):
    torch.manual_seed(0)
    values = [torch.randn(4, 3), torch.randn(6), torch.randn(2, 2)]
    forms = [[Shard(0)], [Replicate()], None]

    def form(value, placements):
        return (
            value.clone()
            if placements is None
            else distribute_tensor(value.clone(), mesh, placements)
        )

    params = [torch.nn.Parameter(form(v, f)) for v, f in zip(values, forms, strict=True)]
    plain = [torch.nn.Parameter(v.clone()) for v in values]
    ours = cls(params, lr=0.1, max_grad_norm=clip, **choice)
    theirs = getattr(torch.optim, cls.__name__)(plain, lr=0.1, foreach=False)
    for _ in range(3):
        grads = [torch.randn_like(v) for v in values]
        for p, q, g, f in zip(params, plain, grads, forms, strict=True):
            p.grad, q.grad = form(g, f), g.clone()
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(plain, clip)
        ours.step()
        theirs.step()
        if clip is not None:
            assert not isinstance(ours.grad_norm, DTensor)
            torch.testing.assert_close(ours.grad_norm, norm)
    for p, q in zip(params, plain, strict=True):
        found = p.full_tensor() if isinstance(p, DTensor) else p
        torch.testing.assert_close(found.detach(), q.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
def test_several_optimizers_step_sharded_tensors_as_whole_ones(mesh, choice):
    def run(form):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(form(torch.randn(shape))) for shape in ((4, 3), (6,))]
        groups = [
            {"params": [p], "optimizer": n} for p, n in zip(params, ("Lion", "AdamW"), strict=True)
        ]
        optimizer = MultiOptimizer(groups, max_grad_norm=0.5, **choice)
        for _ in range(3):
            for p in params:
                p.grad = form(torch.randn(p.shape))
            optimizer.step()
        return [p.full_tensor() if isinstance(p, DTensor) else p for p in params]

    sharded = run(lambda value: distribute_tensor(value, mesh, [Shard(0)]))
    for a, b in zip(sharded, run(torch.Tensor.clone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
def test_a_sharded_parameter_is_marked_as_changed(mesh, choice):
    p = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    ours = AdamW([p], lr=0.1, **choice)
    product = (p * p).sum()
    p.grad = torch.ones_like(p)
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_sharded_parameter_changes_its_mode(mesh):
    p, q = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])), torch.ones(4)
    ours, plain = (ScheduleFreeSGD([x], lr=0.1) for x in (p, q))
    for optimizer, x in ((ours, p), (plain, q)):
        optimizer.train()
        for _ in range(3):
            x.grad = torch.ones_like(x)
            optimizer.step()
    product = (p * p).sum()
    for optimizer in (ours, plain):
        optimizer.eval()
    assert torch.equal(p.full_tensor().detach(), q)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def train_sharded(choice):
    """Two processes have half of each parameter; return what they have learnt."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    params = [
        torch.nn.Parameter(distribute_tensor(torch.randn(shape), mesh, [form]))
        for shape, form in (((4, 3), Shard(0)), ((5,), Shard(0)), ((2, 2), Replicate()))
    ]
    ours = AdamW(params, lr=0.1, max_grad_norm=0.5, skip_nonfinite=True, **choice)
    norms = []
    for step in range(4):
        for p in params:
            p.grad = distribute_tensor(torch.randn(p.shape), mesh, p.placements)
        if step == 2:  # in one process alone, but neither may step
            params[0].grad.to_local()[0, 0] += float("inf") if dist.get_rank() else 0.0
        ours.step()
        norms.append(ours.grad_norm.clone())
    learnt = [p.detach().full_tensor() for p in params]
    return learnt, norms, ours.skipped_steps


@pytest.mark.slow
@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}], ids=label)
def test_two_processes_step_as_one_would(choice):
    torch.manual_seed(0)
    plain = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,), (2, 2))]
    theirs, norms = torch.optim.AdamW(plain, lr=0.1, foreach=False), []
    for step in range(4):
        for p in plain:
            p.grad = torch.randn(p.shape)
        norms.append(torch.nn.utils.clip_grad_norm_(plain, 0.5))
        if step != 2:
            theirs.step()
    for learnt, found, skipped in in_two_processes(train_sharded, choice):
        assert skipped == 1
        assert not torch.isfinite(found.pop(2))
        torch.testing.assert_close(found, norms[:2] + norms[3:])
        for a, b in zip(learnt, plain, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


SIDES = ((5, 4), (5,), (2, 2), (3, 6))  # that two processes cannot halve, too


def several(params):
    groups = [
        {"params": [p for p in params if p.ndim > 1], "optimizer": "Muon", "lr": 0.1},
        {"params": [p for p in params if p.ndim == 1], "optimizer": "AdamW", "lr": 0.1},
    ]
    return MultiOptimizer(groups, max_grad_norm=0.5)


def step_several(form):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(form(torch.randn(sides))) for sides in SIDES]
    optimizer = several(params)
    for _ in range(3):
        for p in params:
            p.grad = form(torch.randn(p.shape))
        optimizer.step()
    return [p.detach() for p in params], optimizer.grad_norm


def train_several():
    mesh = init_device_mesh("cpu", (2,))
    params, norm = step_several(lambda value: distribute_tensor(value, mesh, [Shard(0)]))
    return [p.full_tensor() for p in params], norm


@pytest.mark.slow
def test_two_processes_step_several_optimizers_as_one_would():
    plain, norm = step_several(torch.Tensor.clone)
    for found, its_norm in in_two_processes(train_several):
        torch.testing.assert_close(its_norm, norm)
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
