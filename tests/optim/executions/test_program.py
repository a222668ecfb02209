"""A rule's trace, as arithmetic that can be read and run."""

import math

import pytest
import torch
from support.labels import label
from support.tensors import parameters

from optimplug._core.optim.executions.program import trace
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.rules.adam import AdamRule
from optimplug._core.optim.rules.sgd import SGDRule

ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.5}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.5}
RULES = [
    *((AdamRule(a, m, d), ADAM) for a in (0, 1) for m in (0, 1) for d in (0, 1)),
    *((SGDRule(True, n, m), SGD) for n in (0, 1) for m in (0, 1)),
    (SGDRule(), SGD),
]


def test_a_trace_reads_as_the_rule():
    program = trace(SGDRule(), [SGDRule().coefficients(SGD, 1)])
    assert program.lines == (
        ("t0", "x_p * k_weight_decay"),
        ("t1", "x_g + t0"),
        ("t2", "t1 * k_minus_lr"),
        ("t3", "x_p + t2"),
    )
    assert program.results == (("p", "t3"),)


@pytest.mark.parametrize(("rule", "hyper"), RULES, ids=label)
def test_running_a_trace_is_running_the_rule(rule, hyper):
    k = rule.coefficients(hyper, 2)
    p, g, *kept = (x.detach().abs() for x in parameters([(3,)] * 5, torch.float64))
    state = dict(zip(rule.state, kept, strict=False))
    program = trace(rule, [k])
    known = {
        **{"x_p": p.clone(), "x_g": g, **{f"x_{n}": s.clone() for n, s in state.items()}},
        **{f"k_{name}": value for name, value in k.items()},
        **{"root": torch.sqrt, "larger": torch.maximum, "number": float, "blend": torch.lerp},
    }
    for name, value in program.lines:
        known[name] = eval(value, dict(known))  # noqa: S307 # it is no literal
    rule.update(p, g, state, k)
    for name, end in program.results:
        torch.testing.assert_close(known[end], {"p": p, **state}[name], rtol=1e-14, atol=0)


def test_a_branch_is_taken_if_any_cell_needs_it():
    with_decay, without = ({"decay": d} for d in (0.9, 1.0))
    rest = AdamRule().coefficients(ADAM, 1)
    rule = AdamRule(decoupled=True)
    both, none = [{**rest, **with_decay}, {**rest, **without}], [{**rest, **without}]
    assert ("t0", "x_p * k_decay") in trace(rule, both).lines
    assert ("t0", "x_p * k_decay") not in trace(rule, none).lines
    assert trace(rule, both).suits(both)
    assert not trace(rule, both).suits(none)


class Branching(Rule):
    """Asks of a coefficient what a trace cannot answer."""

    state = ()

    def coefficients(self, hyper, t):
        return {"lr": math.pi}

    def update(self, p, g, state, k):
        if self.question(k["lr"]):
            p.add_(g, alpha=k["lr"])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda k: k + 1, "branch on nothing but whether"),
        (lambda k: k == "x", "compared with a number alone"),
    ],
)
def test_a_rule_that_branches_on_anything_else_is_refused(question, message):
    rule = Branching()
    rule.question = question
    with pytest.raises(TypeError, match=message):
        trace(rule, [rule.coefficients({}, 1)])
