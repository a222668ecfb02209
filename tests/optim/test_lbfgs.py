"""LBFGS against torch's, bit for bit, and what it does besides."""

import copy
import io

import pytest
import torch
from support.labels import label
from support.optimizers import ALONE
from support.rows import each_in_turn
from support.tensors import parameters, same_bits
from torch.testing._internal.common_optimizers import optim_db

from optimplug import ArgumentError, StateError
from optimplug._core.optim.memory import state_bytes
from optimplug.optim import LBFGS, AdamW

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128]
[ROW] = [info for info in optim_db if info.optim_cls is torch.optim.LBFGS]
INPUTS = [row.kwargs for row in ROW.optim_inputs_func("cpu", torch.float32)]
OPTIONS = [*ALONE[LBFGS].options, *INPUTS]
SEARCH = {"line_search_fn": "strong_wolfe"}
SHAPES = [(3, 2), (4,), ()]


def valley(params):
    """A curved valley, so that neither direction nor length is easy: Rosenbrock's, and a sum."""
    x = torch.cat([(torch.view_as_real(p) if p.is_complex() else p).reshape(-1) for p in params])
    return (10 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x) ** 2).sum()


def quadratic(params):
    return sum(((p - 1).abs() ** 2).sum() * (i + 1) for i, p in enumerate(params))


def closure_of(optimizer, loss=valley, without=()):
    params = optimizer.param_groups[0]["params"]

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        for i in without:
            params[i].grad = None
        return value.detach()  # torch's own step would warn of a loss with a graph, once

    return closure


def descend(optimizer, steps=3, loss=valley, without=()):
    closure = closure_of(optimizer, loss, without)
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]], losses


def bits(value):
    """A state's value as what can be compared in every bit."""
    if isinstance(value, torch.Tensor):
        value = torch.view_as_real(value) if value.is_complex() else value
        return value.dtype, tuple(value.shape), value.reshape(-1).view(torch.uint8).tolist()
    return list(map(bits, value)) if isinstance(value, list) else (type(value), repr(value))


@pytest.mark.parametrize(
    ("options", "dtype", "loss"), each_in_turn(OPTIONS, DTYPES, [valley, quadratic]), ids=label
)
def test_it_is_torchs_bit_for_bit(options, dtype, loss):
    ours, theirs = (cls(parameters(SHAPES, dtype), **options) for cls in (LBFGS, torch.optim.LBFGS))
    (found, losses), (expected, others) = (descend(o, loss=loss) for o in (ours, theirs))
    assert bits(found) == bits(expected)
    assert bits(losses) == bits(others)
    [kept], [other] = ours.state.values(), theirs.state.values()
    assert {k: bits(v) for k, v in kept.items()} == {k: bits(v) for k, v in other.items()}


@pytest.mark.parametrize("options", [{"lr": 0.1}, SEARCH], ids=label)
def test_what_has_no_gradient_stays_and_any_layout_is_right(options):
    def run(cls, laid_out):
        wide, *rest = parameters([(4, 3), (4,), (2,)])
        first = torch.nn.Parameter(laid_out(wide.detach().t()))
        return descend(cls([first, *rest], **options), without=[1])[0]

    # torch's fails at a gradient that is not contiguous.
    expected = run(torch.optim.LBFGS, torch.Tensor.contiguous)
    assert bits(run(LBFGS, lambda p: p)) == bits(run(LBFGS, torch.Tensor.contiguous))
    assert bits(run(LBFGS, lambda p: p)) == bits(expected)


def test_a_sparse_gradient_is_torchs():
    def run(cls):
        torch.manual_seed(0)
        table, target = torch.nn.Embedding(5, 2, sparse=True), torch.randn(3, 2)
        optimizer = cls(table.parameters(), **SEARCH)

        def closure():
            optimizer.zero_grad()
            loss = ((table(torch.tensor([0, 2, 2])) - target) ** 2).sum()
            loss.backward()
            return loss.detach()

        optimizer.step(closure)
        return table.weight

    assert same_bits(run(LBFGS), run(torch.optim.LBFGS))


@pytest.mark.parametrize("options", [{}, SEARCH], ids=label)
def test_where_nothing_slopes_nothing_moves_and_only_the_evaluation_counts(options):
    states = []
    for cls in (LBFGS, torch.optim.LBFGS):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = cls([p], **options)
        optimizer.step(closure_of(optimizer, quadratic))
        assert torch.equal(p, torch.ones(3))
        states.append(dict(optimizer.state[p]))
    assert states[0] == states[1] == {"func_evals": 1, "n_iter": 0}


WAYS = [(torch.optim.LBFGS, LBFGS), (LBFGS, torch.optim.LBFGS), (LBFGS, LBFGS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=label)
@pytest.mark.parametrize("options", [{"lr": 0.05}, {**SEARCH, "max_iter": 3}], ids=label)
@pytest.mark.parametrize(("first", "second"), WAYS, ids=label)
def test_a_state_goes_on_bit_for_bit_in_either_class(first, second, options, dtype):
    start = first(parameters(SHAPES, dtype), **options)
    values, _ = descend(start, 3)
    buffer = io.BytesIO()
    torch.save(start.state_dict(), buffer)
    buffer.seek(0)
    go_on = second([torch.nn.Parameter(value) for value in values], **options)
    go_on.load_state_dict(torch.load(buffer, weights_only=True))
    assert bits(descend(start, 4)) == bits(descend(go_on, 4))


@pytest.mark.parametrize("state", [{"exp_avg": torch.ones(2)}, {"n_iter": 3, "func_evals": 4}])
def test_a_state_that_is_none_of_its_own_is_refused(state):
    optimizer = LBFGS(parameters([(2,)]), **SEARCH)
    bad = {**optimizer.state_dict(), "state": {0: state}}
    with pytest.raises(StateError, match=r"a state of LBFGS must have \['"):
        optimizer.load_state_dict(bad)
    assert not optimizer.state


def test_the_state_of_another_optimizer_is_refused():
    other = AdamW(parameters([(2,)]))
    other.param_groups[0]["params"][0].grad = torch.ones(2)
    other.step()
    with pytest.raises(StateError):
        LBFGS(parameters([(2,)])).load_state_dict(other.state_dict())


def test_a_copy_steps_as_the_original():
    optimizer = LBFGS(parameters(SHAPES), **SEARCH, max_iter=3)
    descend(optimizer, 2)
    twin = copy.deepcopy(optimizer)
    assert bits(descend(optimizer)) == bits(descend(twin))


class TestArguments:
    BAD = [
        ({"lr": -1.0}, "Invalid learning rate: -1"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"max_iter": 0}, "max_iter must be an int >= 1"),
        ({"max_eval": 0}, "max_eval must be an int >= 1"),
        ({"history_size": 0}, "history_size must be an int >= 1"),
        ({"line_search_fn": "armijo"}, "'armijo'; only 'strong_wolfe' is supported"),
        ({"max_grad_norm": 0.0}, "Invalid max_grad_norm"),
    ]

    @pytest.mark.parametrize(("options", "message"), BAD, ids=label)
    def test_a_bad_one_is_named(self, options, message):
        with pytest.raises(ArgumentError, match=message):
            LBFGS(parameters(), **options)

    @pytest.mark.parametrize("cls", [LBFGS, torch.optim.LBFGS])
    def test_several_groups_are_refused(self, cls):
        a, b = parameters([(2,), (3,)])
        with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
            cls([{"params": [a]}, {"params": [b]}])

    def test_a_group_that_comes_later_is_not_added(self):
        a, b = parameters([(2,), (3,)])
        optimizer = LBFGS([a])
        with pytest.raises(ArgumentError, match="give it one group"):
            optimizer.add_param_group({"params": [b]})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize("cls", [LBFGS, torch.optim.LBFGS])
    def test_a_step_without_a_closure_is_an_error(self, cls):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'closure'"):
            cls(parameters()).step()


class TestClipping:
    @pytest.mark.parametrize("options", [{"lr": 0.1}, SEARCH], ids=label)
    def test_each_evaluation_is_clipped(self, options):
        ours = LBFGS(parameters(SHAPES), **options, max_grad_norm=0.5)
        theirs = torch.optim.LBFGS(parameters(SHAPES), **options)
        bare, norms = closure_of(theirs), []

        def clipped():
            loss = bare()
            norms.append(torch.nn.utils.clip_grad_norm_(theirs.param_groups[0]["params"], 0.5))
            return loss

        found, _ = descend(ours, 1)
        theirs.step(clipped)
        assert len(norms) > 3
        torch.testing.assert_close(ours.grad_norm, norms[0])
        for p, q in zip(found, theirs.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(p, q.detach(), rtol=1e-4, atol=1e-5)

    def test_gradients_are_left_as_they_are(self):
        optimizer = LBFGS(parameters([(3,)]), lr=0.1, max_iter=1, max_grad_norm=0.1)
        descend(optimizer, 1, quadratic)
        [p] = optimizer.param_groups[0]["params"]
        torch.testing.assert_close(p.grad.norm(), optimizer.grad_norm)


class TestSkipping:
    def run(self, options, loss):
        """Take two steps that are right, and one in which the loss is this."""
        optimizer = LBFGS(parameters([(3,)]), **options, skip_nonfinite=True)
        descend(optimizer, 2, max_iter_quadratic)
        [p] = optimizer.param_groups[0]["params"]
        before = bits(p.detach()), {k: bits(v) for k, v in optimizer.state[p].items()}
        optimizer.step(closure_of(optimizer, loss))
        after = bits(p.detach()), {k: bits(v) for k, v in optimizer.state[p].items()}
        return optimizer.skipped_steps, before == after

    @pytest.mark.parametrize("options", [{"lr": 0.1, "max_iter": 3}, {**SEARCH, "max_iter": 2}])
    @pytest.mark.parametrize("bad", [float("inf"), float("nan")])
    def test_a_step_that_begins_with_no_number_is_left_out(self, options, bad):
        assert self.run(options, lambda params: (params[0] * bad).sum()) == (1, True)

    def test_a_step_that_ends_with_no_number_is_undone(self):
        calls = []

        def spoilt(params):
            calls.append(0)
            return max_iter_quadratic(params) * (1.0 if len(calls) < 2 else float("nan"))

        assert self.run({"lr": 0.1, "max_iter": 3}, spoilt) == (1, True)

    def test_a_step_that_is_right_is_the_same_as_without(self):
        with_it = LBFGS(parameters(SHAPES), **SEARCH, skip_nonfinite=True)
        assert bits(descend(with_it)) == bits(descend(LBFGS(parameters(SHAPES), **SEARCH)))
        assert with_it.skipped_steps == 0


def max_iter_quadratic(params):
    """A loss that a few iterations do not get to the bottom of."""
    return ((params[0] - 3) ** 4).sum()


def test_a_closure_that_fails_in_a_search_leaves_parameters_and_state():
    optimizer = LBFGS(parameters([(3,)]), **SEARCH, max_iter=2)
    descend(optimizer, 1, max_iter_quadratic)
    [p] = optimizer.param_groups[0]["params"]
    before = bits(p.detach()), {k: bits(v) for k, v in optimizer.state[p].items()}
    good, calls = closure_of(optimizer, max_iter_quadratic), []

    def failing():
        calls.append(0)
        if len(calls) == 2:
            raise ZeroDivisionError
        return good()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    assert before == (bits(p.detach()), {k: bits(v) for k, v in optimizer.state[p].items()})


def test_the_closure_has_gradients_and_hooks_run_once():
    optimizer, found = LBFGS(parameters([(2,)]), lr=0.1), []
    optimizer.register_step_pre_hook(lambda *_: found.append("before"))
    optimizer.register_step_post_hook(lambda *_: found.append("after"))
    good = closure_of(optimizer, quadratic)

    def closure():
        assert torch.is_grad_enabled()
        return good()

    with torch.no_grad():
        optimizer.step(closure)
    assert found == ["before", "after"]


def test_a_loss_with_its_graph_comes_back_and_warns_of_nothing():
    [p] = parameters([(2,)])
    optimizer = LBFGS([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    expected = closure().item()
    assert optimizer.step(closure).requires_grad
    assert optimizer.step(lambda: closure().item()) < expected  # a float is a loss as well


def test_its_memory_is_known_before_there_is_any():
    optimizer = LBFGS(parameters([(20,)]), lr=0.03, history_size=3)
    expected = state_bytes(optimizer)
    descend(optimizer, 2, max_iter_quadratic)
    [kept] = optimizer.state.values()
    vectors = [kept["d"], kept["prev_flat_grad"], *kept["old_dirs"], *kept["old_stps"]]
    assert sum(v.nbytes for v in vectors) == expected


@pytest.mark.parametrize(("key", "value"), [("rounding", "exact"), ("state_dtype", "8bit")])
def test_a_storage_asked_for_between_steps_is_refused(key, value):
    [p] = parameters([(2,)])
    optimizer = LBFGS([p], lr=0.1)
    before = p.detach().clone()
    optimizer.param_groups[0][key] = value
    with pytest.raises(ArgumentError, match=f"has no {key}"):
        optimizer.step(lambda: (p**2).sum())
    assert torch.equal(p.detach(), before)
