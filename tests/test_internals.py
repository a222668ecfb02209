"""A canary for each private part of torch that the core uses: it says what is gone, and since when."""

import pytest
import torch
import torch.distributed.fsdp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from optimplug._core import internals
from optimplug._core.optim.executions.ops import OPERATIONS

GONE = f"torch {torch.__version__} has it no longer; mend optimplug/_core/internals.py"


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_lists(name):
    if OPERATIONS[name].foreach is None and OPERATIONS[name].tensor is None:
        for form in (name, f"{name}_"):
            assert callable(internals.foreach_operator(form)), f"torch._foreach_{form}: {GONE}"


@pytest.mark.parametrize("operator", [internals.fused_adam, internals.fused_adamw])
def test_fused_adam(operator):
    p, state = torch.ones(1), [[torch.zeros(1)], [torch.zeros(1)], []]
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 0.0}
    flags = {"amsgrad": False, "maximize": False, "grad_scale": None, "found_inf": None}
    operator([p], [torch.ones(1)], *state, [torch.ones(())], **settings, **flags)
    assert p.item() == pytest.approx(0.9), f"torch's fused Adam computes something else: {GONE}"


def test_fused_adagrad():
    p = torch.ones(1)
    settings = {"lr": 0.1, "lr_decay": 0.0, "weight_decay": 0.0, "eps": 0.0, "maximize": False}
    scaling = {"grad_scale": None, "found_inf": None}
    steps = [torch.ones(())]
    internals.fused_adagrad([p], [torch.ones(1)], [torch.zeros(1)], steps, **settings, **scaling)
    assert p.item() == pytest.approx(0.9), f"torch's fused Adagrad computes something else: {GONE}"


def test_fused_sgd():
    p = torch.ones(1)
    settings = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0}
    flags = {"nesterov": False, "maximize": False, "is_first_step": True}
    scaling = {"grad_scale": None, "found_inf": None}
    internals.fused_sgd([p], [torch.ones(1)], [], **settings, **flags, **scaling)
    assert p.item() == pytest.approx(0.9), f"torch's fused SGD computes something else: {GONE}"


def test_where_a_shard_starts():
    # The second of two by three processes.
    mesh = DeviceMesh("cpu", torch.arange(6).view(2, 3), _init_backend=False, _rank=1)
    found = internals.shard_start((5, 7), mesh, (Replicate(), Shard(1)))
    assert found == ((5, 3), (0, 3)), f"where DTensor's shards start: {GONE}"


def test_modes_that_see_every_operation():
    assert not internals.in_dispatch_mode()
    with FakeTensorMode():
        assert internals.in_dispatch_mode(), f"torch's fake tensors are no mode: {GONE}"


def test_forms_that_are_remembered():
    a, p = torch.ones(3, 4), nn.Parameter(torch.ones(2))
    same = internals.remembered_forms([a, p])
    assert same is not None, f"torch's guards of tensors: {GONE}"
    assert same(torch.zeros(3, 4), p), f"they look at more than the form: {GONE}"
    others = [torch.ones(4, 3), torch.ones(4, 3).t(), torch.ones(3, 4).double()]
    others += [
        torch.ones(3, 4).bfloat16(),
        torch.ones(3, 4).to_sparse(),
        nn.Parameter(a),
        a.to("meta"),
    ]
    others += [torch.ones(3, 4, dtype=torch.int32), torch._neg_view(torch.ones(3, 4)), None]
    assert not any(same(other, p) for other in others), f"they look at less: {GONE}"


def test_a_form_is_not_remembered_where_torch_has_nothing_for_it(monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    assert internals.remembered_forms([torch.ones(1)]) is None


def test_a_step_that_nobody_listens_to_goes_past_the_hooks():
    class Quick(torch.optim.Optimizer):
        def step(self, closure=None):
            return closure

    own, told = Quick.step, []
    internals.hook_step_of(Quick)
    first = Quick.step
    optimizer = Quick([torch.zeros(1)], {})  # where torch would hook it
    assert Quick.step is first, f"the mark of hooked steps: {GONE}"
    assert internals.unhooked_step(Quick) is own, f"the mark of hooked steps: {GONE}"
    assert optimizer.step(3) == 3
    handles = [
        optimizer.register_step_pre_hook(lambda *args: told.append("before")),
        optimizer.register_step_post_hook(lambda *args: told.append("after")),
        register_optimizer_step_pre_hook(lambda *args: told.append("before all")),
        register_optimizer_step_post_hook(lambda *args: told.append("after all")),
    ]
    for handle in handles:
        told.clear()
        optimizer.step()
        assert told, f"where torch keeps the hooks of steps: {GONE}"
        handle.remove()
    told.clear()
    optimizer.step()
    assert not told
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    seen = {event.key for event in profile.key_averages()}
    assert "Optimizer.step#Quick.step" in seen, f"whether a profiler listens: {GONE}"


def test_fsdp_marks_what_it_has_flattened():
    p = nn.Parameter(torch.ones(1))
    assert not internals.is_flattened(p)
    set_flattened = torch.distributed.fsdp._common_utils._set_fsdp_flattened
    set_flattened(p)
    assert internals.is_flattened(p), f"FSDP's mark is another: {GONE}"


def test_a_function_stays_out_of_graphs():
    kept_out = internals.outside_graphs(torch.compiler.is_compiling)
    graphs = []
    compiled = torch.compile(
        lambda x: (x + 1) * (not kept_out()), backend=lambda g, _: graphs.append(g) or g.forward
    )
    assert compiled(torch.ones(1)) == 2, f"torch's compiler does not leave it out: {GONE}"


def test_a_hook_comes_first_after_a_step():
    optimizer, heard = torch.optim.SGD([torch.zeros(1, requires_grad=True)]), []
    optimizer.register_step_post_hook(lambda *_: heard.append("other"))
    handle = internals.first_after_step(optimizer, lambda *_: heard.append("first"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert heard == ["first", "other", "other"], GONE


def test_hooks_around_loading():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    before = optimizer.register_load_state_dict_pre_hook(print)
    after = optimizer.register_load_state_dict_post_hook(repr)
    assert internals.load_pre_hooks(optimizer) == [print], f"load_state_dict's hooks: {GONE}"
    assert internals.load_post_hooks(optimizer) == [repr], f"load_state_dict's hooks: {GONE}"
    before.remove()
    after.remove()
    assert internals.load_pre_hooks(optimizer) == internals.load_post_hooks(optimizer) == []


def test_bases_of_modules():
    convolutions = nn.Conv1d, nn.Conv2d, nn.ConvTranspose3d
    norms = nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm3d
    assert all(issubclass(c, internals.EVERY_CONVOLUTION) for c in convolutions), GONE
    assert all(issubclass(c, internals.EVERY_NORM_BY_BATCH) for c in norms), GONE
    assert not issubclass(nn.LayerNorm, internals.EVERY_NORM_BY_BATCH), GONE


def test_what_a_module_holds_itself():
    module = nn.Linear(2, 2)
    module.one = module.other = nn.ReLU()
    assert list(internals.children_by_name(module)) == ["one", "other"], GONE
    assert list(internals.parameters_by_name(module)) == ["weight", "bias"], GONE
    norm = torch.nn.BatchNorm1d(2)
    internals.buffers_by_name(norm)["running_mean"] = torch.ones(2)
    assert list(internals.buffers_by_name(norm)) == [name for name, _ in norm.named_buffers()], GONE
    assert norm.running_mean.sum() == 2, GONE


def test_a_hooked_step_is_not_hooked_again_and_can_be_had_without():
    class Plain(torch.optim.Optimizer):
        def step(self, closure=None):
            return "done"

    class Hooked(Plain):
        step = internals.hooked_step(
            lambda self, closure=None: internals.unhooked_step(Plain)(self)
        )

    calls = []
    Plain([torch.zeros(1)], {})  # so that torch hooks the step of that class
    assert internals.unhooked_step(Plain) is not Plain.step, f"the mark of hooked steps: {GONE}"
    optimizer = Hooked([torch.zeros(1)], {})
    optimizer.register_step_post_hook(lambda *_: calls.append(None))
    assert optimizer.step() == "done"
    assert len(calls) == 1, f"the mark of hooked steps: {GONE}"
