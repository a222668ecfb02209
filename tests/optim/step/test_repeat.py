"""A step like the last one does what a step from nothing would do, whatever has changed since."""

import pytest
import torch
from support.labels import label
from support.optimizers import TABLE
from support.tensors import parameters, same_bits

from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.step.repeat import Repeat
from optimplug.optim import SGD, Adam, AdamW

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")

SHAPES = [(7, 5), (5,), (300,), (1,), (0,), (4, 3)]


def groups(params):
    return [
        {"params": params[:2], "lr": 0.01, "weight_decay": 0.0},
        {"params": params[2:4], "weight_decay": 0.1},
        {"params": params[4:]},
    ]


def flat(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(optimizer, generator, missing=0.0):
    for p in flat(optimizer):
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        away = torch.rand((), generator=generator) < missing
        p.grad = None if away else g


def trained(cls, options, change=lambda ours: None, missing=0.0, steps=4, dtype=torch.float32):
    """Return an optimizer after some steps, a change, and as many steps again."""
    ours = cls(groups(parameters(SHAPES, dtype)), **{"lr": 0.02, **options})
    generator = torch.Generator().manual_seed(0)
    for step in range(2 * steps):
        give_gradients(ours, generator, missing)
        if step == steps:
            change(ours)
        ours.step()
    return ours


def same(ours, theirs):
    """Tell whether parameters and states agree in every bit."""
    for p, q in zip(flat(ours), flat(theirs), strict=True):
        kept, other = ours.state.get(p, {}), theirs.state.get(q, {})
        if kept.keys() != other.keys() or not same_bits(p.detach(), q.detach()):
            return False
        if not all(same_bits(kept[name], other[name]) for name in kept):
            return False
    return True


@pytest.fixture
def from_nothing(monkeypatch):
    """Have every step look at everything."""

    def run(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(Repeat, "of", classmethod(lambda *args: None))
            return trained(*args, **options)

    return run


def times(optimizer):
    """How many of the last steps were done with what one before has found."""
    again = optimizer._layout.again
    return 0 if again is None else again.times


CASES = [
    *((cls, {}) for cls in TABLE),
    (SGD, {"momentum": 0.9, "dampening": 0.1}),
    (Adam, {"amsgrad": True, "maximize": True, "betas": [0.8, 0.9]}),
    (AdamW, {"max_grad_norm": 0.5}),
    (AdamW, {"skip_nonfinite": True}),
    (AdamW, {"state_dtype": "bfloat16"}),
    (AdamW, {"foreach": True}),
    (AdamW, {"foreach": False}),
    (AdamW, {"fused": True, "max_grad_norm": 0.5}),
]


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize(("cls", "options"), CASES, ids=label)
def test_it_does_what_a_step_from_nothing_does(cls, options, missing, from_nothing):
    runs = [run(cls, options, missing=missing, steps=8) for run in (trained, from_nothing)]
    assert same(*runs)


@pytest.mark.parametrize("choice", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_whoever_has_gradients_the_result_is_torchs(cls, choice):
    theirs = getattr(torch.optim, cls.__name__)
    options = {"momentum": 0.9} if cls is SGD else {}
    ours = trained(cls, {**options, **choice}, missing=0.6, steps=10)
    truth = trained(theirs, {**options, "foreach": False}, missing=0.6, steps=10)
    for p, q in zip(flat(ours), flat(truth), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for name, value in truth.state[q].items():
            torch.testing.assert_close(ours.state[p][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_it_serves_where_nothing_has_changed(cls, missing):
    assert times(trained(cls, {}, missing=missing, steps=10)) > 10


def test_a_rate_that_moves_at_each_step_is_no_change():
    ours = AdamW(parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(ours, 0.9)
    for _ in range(8):
        give_gradients(ours, torch.Generator().manual_seed(0))
        ours.step()
        scheduler.step()
    assert times(ours) == 6


def new_data(ours):
    flat(ours)[0].data = torch.ones(7, 5)


def seen_transposed(ours):
    p = flat(ours)[5]
    p.data = p.data.reshape(3, 4).t()
    p.grad = torch.arange(12.0).view(4, 3)


def gradient_transposed(ours):
    p = flat(ours)[5]
    p.grad = torch.arange(12.0).view(3, 4).t()


def gradient_negated(ours):
    flat(ours)[3].grad = torch._neg_view(torch.ones(1))


def narrow_gradient(ours):
    for p in flat(ours)[:2]:
        p.grad = torch.ones_like(p)
        p.grad.data = p.grad.bfloat16()


def wide(ours):
    p = flat(ours)[1]
    p.grad, p.data = None, p.data.double()
    p.grad = torch.ones(5, dtype=torch.float64)
    for name in ours.state[p].keys() - {"step"}:
        ours.state[p][name] = ours.state[p][name].double()


def same_memory(ours):
    p, q = flat(ours)[0], flat(ours)[2]
    p.data = q.data[:35].view(7, 5)


def moment_replaced(ours):
    ours.state[flat(ours)[0]]["exp_avg"] = torch.ones(7, 5)


def moment_transposed(ours):
    kept = ours.state[flat(ours)[5]]
    kept["exp_avg"] = kept["exp_avg"].reshape(3, 4).t()


def memory_of_a_moment_replaced(ours):
    ours.state[flat(ours)[0]]["exp_avg"].data = torch.ones(7, 5)


def moment_gone(ours):
    del ours.state[flat(ours)[0]]["exp_avg"]


def moment_none(ours):
    ours.state[flat(ours)[0]]["exp_avg"] = None


def state_gone(ours):
    del ours.state[flat(ours)[1]]


def all_state_gone(ours):
    ours.state.clear()


def counter_zeroed(ours):
    ours.state[flat(ours)[0]]["step"].zero_()


def counter_replaced(ours):
    ours.state[flat(ours)[0]]["step"] = torch.tensor(7.0)


def counter_a_number(ours):
    ours.state[flat(ours)[0]]["step"] = 7


def memory_of_a_counter_replaced(ours):
    ours.state[flat(ours)[0]]["step"].data = torch.tensor(7.0)


def loaded(ours):
    state = ours.state_dict()
    for kept in state["state"].values():
        kept["exp_avg"] = kept["exp_avg"] + 1
    ours.load_state_dict(state)


def other_rate(ours):
    ours.param_groups[1]["lr"] = 0.5


def rate_a_tensor(ours):
    ours.param_groups[1]["lr"] = torch.tensor(0.5)


def betas_in_place(ours):
    ours.param_groups[0]["betas"][0] = 0.1


def another_rule(ours):
    ours.param_groups[0]["maximize"] = True


def decay_begins(ours):
    ours.param_groups[0]["weight_decay"] = 0.5


def clipping_begins(ours):
    ours.max_grad_norm = 0.1


def execution_chosen(ours):
    ours.defaults["foreach"] = True


def moved_to_another_group(ours):
    ours.param_groups[1]["params"].insert(0, ours.param_groups[0]["params"].pop())


def taken_out(ours):
    ours.param_groups[0]["params"].pop()


def group_added(ours):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    ours.add_param_group({"params": [p], "lr": 0.3})


def frozen(ours):
    flat(ours)[0].requires_grad_(False)


def swapped(ours):
    p = flat(ours)[1]
    p.grad = None
    torch.utils.swap_tensors(p, torch.nn.Parameter(torch.ones(5)))
    p.grad = torch.ones(5)


CHANGES = [
    *(new_data, seen_transposed, gradient_transposed, gradient_negated, narrow_gradient, wide),
    *(same_memory, moment_replaced, moment_transposed, memory_of_a_moment_replaced, moment_gone),
    *(moment_none, state_gone, all_state_gone, counter_zeroed, counter_replaced),
    *(counter_a_number, memory_of_a_counter_replaced, loaded, other_rate, rate_a_tensor),
    *(betas_in_place, another_rule, decay_begins, clipping_begins, execution_chosen),
    *(moved_to_another_group, taken_out, group_added, frozen, swapped),
]


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_has_changed_is_noticed(change, missing, from_nothing):
    options = {"betas": [0.8, 0.9]}

    def changed(ours):
        assert times(ours) > 0
        change(ours)

    ours = trained(AdamW, dict(options, betas=[0.8, 0.9]), changed, missing=missing, steps=6)
    theirs = from_nothing(AdamW, options, change, missing=missing, steps=6)
    assert same(ours, theirs)


def test_a_step_of_a_gradient_scaler_between_counts_for_those_that_took_part(from_nothing):
    def scaled(ours):
        grads = [p.grad for p in flat(ours)]
        flat(ours)[0].grad = None
        ours.grad_scale, ours.found_inf = torch.tensor(1.0), torch.tensor(0.0)
        ours.step()
        del ours.grad_scale, ours.found_inf
        for p, g in zip(flat(ours), grads, strict=True):
            p.grad = g

    runs = [run(AdamW, {"fused": True}, scaled) for run in (trained, from_nothing)]
    assert same(*runs)


def test_a_gradient_without_memory_is_zero_after_many_that_have_one():
    ours = AdamW([torch.nn.Parameter(torch.ones(4)) for _ in range(2)], weight_decay=0.0)
    give_gradients(ours, torch.Generator().manual_seed(0))
    for p in flat(ours):
        p.grad.zero_()
    for _ in range(4):
        ours.step()
    w, b = flat(ours)
    w.grad = b.grad = None
    (w.sgn() * torch.arange(4.0) + b).sum().backward()
    assert w.grad.data_ptr() == 0
    ours.step()
    assert w.tolist() == [1.0] * 4
    assert all(x < 1 for x in b.tolist())


def test_once_all_experts_have_been_chosen_it_serves_whichever_are():
    ours = AdamW(parameters([(3,)] * 24))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        top = torch.randperm(8, generator=generator)[:2].tolist()
        for i, p in enumerate(flat(ours)):
            p.grad = torch.ones(3) if i % 8 in top else None
        ours.step()
    assert times(ours) > 5


def test_a_state_whose_parameter_has_no_gradient_is_left_alone():
    ours = AdamW(parameters([(3,)] * 3))
    for missing in (0, 1, 0, 1, 2):
        for i, p in enumerate(flat(ours)):
            p.grad = None if i == missing else torch.ones(3)
        if missing == 2:
            del ours.state[flat(ours)[2]]
        ours.step()
    assert flat(ours)[2] not in ours.state


@pytest.mark.parametrize("choice", [{}, {"foreach": True}], ids=label)
def test_patterns_that_are_kept_are_bounded(choice):
    ours = AdamW(parameters([(1,)] * 10), **choice)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        give_gradients(ours, generator, missing=0.5)
        ours.step()
    assert len(ours._layout._patterns._kept) <= 64


def test_hooks_and_the_profiler_are_told_of_every_step():
    ours = trained(SGD, {})
    told = []
    handle = ours.register_step_post_hook(lambda *args: told.append(True))
    ours.step()
    handle.remove()
    ours.step()
    with torch.autograd.profiler.profile() as profile:
        ours.step()
    assert told == [True]
    assert "Optimizer.step#SGD.step" in {event.key for event in profile.key_averages()}
