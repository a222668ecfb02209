"""A rule's trace, as arithmetic that can be read and run."""

import math

import pytest
import torch
from support.labels import label
from support.tensors import parameters

from optimplug._core.optim.executions.program import (
    Constant,
    Input,
    Result,
    Scalar,
    Step,
    trace,
)
from optimplug._core.optim.rule import Rule
from optimplug._core.optim.rules.adam import AdamRule
from optimplug._core.optim.rules.sgd import SGDRule

ADAM = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.5}
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.5}
RULES = [
    *((AdamRule(a, m, d, not d), ADAM) for a in (0, 1) for m in (0, 1) for d in (0, 1)),
    *((SGDRule(True, n, m, True), SGD) for n in (0, 1) for m in (0, 1)),
    (SGDRule(), SGD),
]


def test_a_trace_reads_as_the_rule():
    rule = SGDRule(decays=True)
    program = trace(rule, [rule.coefficients(SGD, 1)])
    assert program.steps == (
        Step("mul", (Input("p"), Scalar("weight_decay"))),
        Step("add", (Input("g"), Result(0))),
        Step("mul", (Result(1), Scalar("minus_lr"))),
        Step("add", (Input("p"), Result(2))),
    )
    assert program.outputs == (("p", Result(3)),)


def run(program, operands, k):
    """Follow a program by Tensor's own operations."""
    done = []

    def value_of(argument):
        match argument:
            case Input(name):
                return operands[name]
            case Scalar(name):
                return k[name]
            case Constant(value):
                return value
            case Result(step):
                return done[step]

    for step in program.steps:
        x, *others = map(value_of, step.arguments)
        done.append(getattr(x, step.operation)(*others))
    return {name: value_of(end) for name, end in program.outputs}


@pytest.mark.parametrize(("rule", "hyper"), RULES, ids=label)
def test_running_a_trace_is_running_the_rule(rule, hyper):
    k = rule.coefficients(hyper, 2)
    p, g, *kept = (x.detach().abs() for x in parameters([(3,)] * 5, torch.float64))
    state = dict(zip(rule.state_names, kept, strict=False))
    copies = {name: tensor.clone() for name, tensor in {"p": p, **state}.items()}
    found = run(trace(rule, [k]), {"g": g, **copies}, k)
    rule.update(p, g, state, k)
    for name, end in found.items():
        torch.testing.assert_close(end, {"p": p, **state}[name], rtol=1e-14, atol=0)


def test_names_of_different_kinds_are_not_taken_for_each_other():
    assert len({Input("lr"), Scalar("lr"), Result(1), Constant(1.0)}) == 4


def test_a_branch_is_taken_if_any_cell_needs_it():
    with_decay, without = ({"decay": d} for d in (0.9, 1.0))
    rest = AdamRule().coefficients(ADAM, 1)
    rule = AdamRule(decoupled=True)
    both, none = [{**rest, **with_decay}, {**rest, **without}], [{**rest, **without}]
    decay = Step("mul", (Input("p"), Scalar("decay")))
    assert decay in trace(rule, both).steps
    assert decay not in trace(rule, none).steps
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
        (lambda k: k.cosh(), "'cosh' is no step of a program; add it to OPERATIONS"),
    ],
)
def test_a_rule_that_branches_on_anything_else_is_refused(question, message):
    rule = Branching()
    rule.question = question
    with pytest.raises((TypeError, AttributeError), match=message):
        trace(rule, [rule.coefficients({}, 1)])
