"""A canary for each private part of torch that the core uses: it says what is gone, and since when."""

from unittest import mock

import pytest
import torch
from torch import nn

from optimplug._core import internals
from optimplug._core.optim.executions.ops import OPERATIONS

GONE = f"torch {torch.__version__} has it no longer; mend optimplug/_core/internals.py"


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_lists(name):
    if OPERATIONS[name].foreach is None:
        for form in (name, f"{name}_"):
            assert callable(internals.foreach_operator(form)), f"torch._foreach_{form}: {GONE}"


@pytest.mark.parametrize("operator", [internals.fused_adam, internals.fused_adamw])
def test_fused_adam(operator):
    p, state = torch.ones(1), [[torch.zeros(1)], [torch.zeros(1)], []]
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 0.0}
    flags = {"amsgrad": False, "maximize": False, "grad_scale": None, "found_inf": None}
    operator([p], [torch.ones(1)], *state, [torch.ones(())], **settings, **flags)
    assert p.item() == pytest.approx(0.9), f"torch's fused Adam computes something else: {GONE}"


def test_fused_sgd():
    p = torch.ones(1)
    settings = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0}
    flags = {"nesterov": False, "maximize": False, "is_first_step": True}
    scaling = {"grad_scale": None, "found_inf": None}
    internals.fused_sgd([p], [torch.ones(1)], [], **settings, **flags, **scaling)
    assert p.item() == pytest.approx(0.9), f"torch's fused SGD computes something else: {GONE}"


def test_hooks_around_loading():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    before = optimizer.register_load_state_dict_pre_hook(print)
    after = optimizer.register_load_state_dict_post_hook(repr)
    assert internals.load_pre_hooks(optimizer) == [print], f"load_state_dict's hooks: {GONE}"
    assert internals.load_post_hooks(optimizer) == [repr], f"load_state_dict's hooks: {GONE}"
    before.remove()
    after.remove()
    assert internals.load_pre_hooks(optimizer) == internals.load_post_hooks(optimizer) == []


class TestSteps:
    def optimizer(self):
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    def test_torchs_schedulers_look_where_steps_are_noted(self):
        optimizer = self.optimizer()
        noted = internals.note_steps(optimizer)
        assert not noted.happened
        optimizer.step()
        assert noted.happened
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        optimizer._opt_called = False
        optimizer.step()
        assert noted.happened, f"torch's schedulers note steps elsewhere: {GONE}"
        scheduler.step()  # torch would warn of a scheduler that is stepped first

    def test_they_are_noted_once_however_many_ask(self):
        optimizer = self.optimizer()
        assert internals.note_steps(optimizer) is internals.note_steps(optimizer)
        assert len(optimizer._optimizer_step_post_hooks) == 1

    def test_the_mark_of_torchs_schedulers_is_known(self):
        optimizer = self.optimizer()
        noted = internals.note_steps(optimizer)
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        assert "step" in vars(optimizer), GONE
        assert not noted.replaced, f"torch's schedulers mark a step in another way: {GONE}"

    def test_a_class_without_hooks_is_wrapped_and_left_as_it_was(self):
        optimizer = WithoutHooks(self.optimizer())
        before = {**vars(optimizer)}
        noted = internals.note_steps(optimizer)
        assert optimizer.step(3) == 3
        assert noted.happened
        noted.forget()
        assert vars(optimizer) == before

    def test_parameters_count_their_changes(self):
        optimizer = self.optimizer()
        before = internals.versions_of(optimizer)
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].add_(1.0)
        assert internals.versions_of(optimizer) != before, GONE


class WithoutHooks(torch.optim.Optimizer):
    """An optimizer by type alone, as many wrappers are."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        return closure


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ("epoch", "The epoch parameter in `scheduler.step()`"),
        ("replaced", "`optimizer.step()` has been overridden"),
        ("order", "Detected call of `lr_scheduler.step()` before `optimizer.step()`"),
        ("get_lr", "please use `get_last_lr()`"),
    ],
)
def test_torchs_words(of, words):
    assert words in internals.torchs_warning(of), GONE


def test_a_first_step_of_torchs_schedulers():
    scheduler = torch.optim.lr_scheduler.ExponentialLR(TestSteps().optimizer(), 0.5)
    scheduler.last_epoch = 7
    internals.first_step(scheduler)
    assert scheduler.last_epoch == 0, GONE
    assert internals.children_of(scheduler) == []
    chain = torch.optim.lr_scheduler.ChainedScheduler([scheduler])
    assert internals.children_of(chain) == [scheduler], GONE


def test_accelerates_wrapper_of_a_scheduler():
    accelerate = pytest.importorskip("accelerate.scheduler")

    class Counting:
        calls = 0

        def step(self):
            self.calls = internals.calls_by_accelerate(self, frames=1)

    counting = Counting()
    counting.step()
    assert counting.calls == 1
    accelerate.AcceleratedScheduler.step.__code__  # noqa: B018 - what the caller is known by
    with mock.patch.object(accelerate, "AcceleratorState") as state:
        state.return_value.num_processes = 3
        accelerate.AcceleratedScheduler(counting, []).step()
        gone = f"accelerate {accelerate.__name__} steps in another way; mend internals.py"
        assert counting.calls == 3, gone
        for alone in ({"split_batches": True}, {"step_with_optimizer": False}):
            accelerate.AcceleratedScheduler(counting, [], **alone).step()
            assert counting.calls == 1, gone


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
