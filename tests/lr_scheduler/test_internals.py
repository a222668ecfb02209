"""A canary for each private part of others that the schedulers use: it says what is gone, and since when."""

from unittest import mock

import pytest
import torch

from optimplug._core.lr_scheduler import internals

ROOM = "optimplug/_core/lr_scheduler/internals.py"
GONE = f"torch {torch.__version__} has it no longer; mend {ROOM}"


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
        gone = f"accelerate {accelerate.__name__} steps in another way; mend {ROOM}"
        assert counting.calls == 3, gone
        for alone in ({"split_batches": True}, {"step_with_optimizer": False}):
            accelerate.AcceleratedScheduler(counting, [], **alone).step()
            assert counting.calls == 1, gone
