"""Every operation of the table: the same in each of its forms as Tensor's own."""

from dataclasses import dataclass

import pytest
import torch

from optimplug._core.optim.batch import Batch, Cell, Form
from optimplug._core.optim.executions.compiled import Compiled
from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.executions.operands import Functional, TensorList
from optimplug._core.optim.executions.ops import OPERATIONS, apply
from optimplug._core.optim.rule import Rule, StateSpec

# Those of the bits of a number, through which nothing flows; see test_bits.py.
ON_BITS = {
    "finite_or": lambda x, y, z, k: x(y),
    "narrowed": lambda x, y, z, k: x(),
    "visible": lambda x, y, z, k: x(),
    "hidden": lambda x, y, z, k: x(),
    "joined": lambda x, y, z, k: x(y),
    "drawn": lambda x, y, z, k: x(y),
}
# How each is called: on x, with the operands y and z, and the number k.
CALLS = {
    "copy": lambda x, y, z, k: x(y),
    "neg": lambda x, y, z, k: x(),
    "abs": lambda x, y, z, k: x(),
    "sqrt": lambda x, y, z, k: x(),
    "rsqrt": lambda x, y, z, k: x(),
    "reciprocal": lambda x, y, z, k: x(),
    "sign": lambda x, y, z, k: x(),
    "add": lambda x, y, z, k: x(y, alpha=k),
    "mul": lambda x, y, z, k: x(k),
    "div": lambda x, y, z, k: x(k),
    "lerp": lambda x, y, z, k: x(y, k),
    "maximum": lambda x, y, z, k: x(y),
    "minimum": lambda x, y, z, k: x(y),
    "clamp_min": lambda x, y, z, k: x(y),
    "clamp_max": lambda x, y, z, k: x(y),
    "addcmul": lambda x, y, z, k: x(y, z, value=k),
    "addcdiv": lambda x, y, z, k: x(y, z, value=k),
    **ON_BITS,
}
MORE = {
    "at least a number": ("clamp_min", lambda x, y, z, k: x(k)),
    "at most a number": ("clamp_max", lambda x, y, z, k: x(k)),
    "a number is added": ("add", lambda x, y, z, k: x(k)),
    "one is added as it is": ("add", lambda x, y, z, k: x(y)),
    "one is multiplied by another": ("mul", lambda x, y, z, k: x(y)),
}
CASES = {**{name: (name, call) for name, call in CALLS.items()}, **MORE}


def call(case, x, y, z, k, in_place=False):
    name, how = CASES[case]
    if name == "copy" and isinstance(x, torch.Tensor):
        return y.clone()  # a tensor's own is in place alone
    if isinstance(x, torch.Tensor) and name in ON_BITS:
        return how(lambda *others: apply(name, x, *others), y, z, k)
    return how(getattr(x, name + "_" * in_place), y, z, k)


def values(case):
    generator = torch.Generator().manual_seed(0)
    x, *others = [[torch.rand(n, generator=generator) + 0.5 for n in (1, 4, 9)] for _ in range(3)]
    if CASES[case][0] in ("abs", "neg", "sign"):
        x = [t * torch.tensor([-1.0, 1.0]).repeat(9)[: len(t)] for t in x]
    if CASES[case][0] in ("joined", "drawn"):  # with whole numbers
        others = [[(t * 10_000).floor() for t in ts] for ts in others]
    return [x, *others]


def test_no_row_is_left_out():
    assert CALLS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("scalars", [0.3, [0.1, 0.2, 0.7]], ids=["shared", "one each"])
@pytest.mark.parametrize("case", CASES)
def test_on_many_tensors(case, scalars, in_place):
    x, y, z = values(case)
    each = scalars if isinstance(scalars, list) else [scalars] * 3
    expected = [call(case, a, b, c, k) for a, b, c, k in zip(x, y, z, each, strict=True)]
    lists = [TensorList([t.clone() for t in ts]) for ts in (x, y, z)]
    before = list(lists[0].tensors)
    found = call(case, *lists, scalars, in_place)
    for a, b in zip(found.tensors, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=0)
    assert all((a is b) is in_place for a, b in zip(found.tensors, before, strict=True))
    written = torch.cat(expected if in_place else x)
    torch.testing.assert_close(torch.cat(before), written, rtol=2e-7, atol=0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("copy", *ON_BITS)])
def test_where_autograd_flows(case, in_place):
    x, y, z = (row[2].double() for row in values(case))
    x.requires_grad_()

    def run(x):
        found = call(case, *map(Functional, (x * 1.0, y, z)), 0.3, in_place)
        return found.tensor

    torch.testing.assert_close(run(x), call(case, x, y, z, 0.3), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(run, (x,))


@dataclass(frozen=True)
class OneOperation(Rule):
    """A rule that is a single operation, so that what is compiled is that alone."""

    case: str
    state = (StateSpec("z"),)

    def coefficients(self, hyper, t):
        return {"k": 0.3}

    def update(self, p, g, state, k):
        result = call(self.case, p, g, state["z"], k["k"])
        p.mul_(0.0).add_(result)


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_compiled(case, dtype):
    x, y, z = (row[2].to(dtype) for row in values(case))
    expected = call(case, x, y, z, 0.3)
    cell = Cell(0, None, False, part=slice(0, 1))
    batch = Batch(
        OneOperation(case), [cell], [{}], [x], [y], {"z": [z]}, [], False, {}, [x], Form.of(x)
    )
    Compiled().prepare(batch).run(None, None)
    tight = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(x, expected, rtol=tight, atol=0)


def test_an_operation_in_place_writes_into_the_tensors_given():
    ones = [torch.ones(2), torch.ones(3)]
    TensorList(ones).mul_(3.0)
    assert [t.tolist() for t in ones] == [[3.0] * 2, [3.0] * 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [0.9995, [0.9995, 0.9996]], ids=["shared", "one each"])
def test_a_number_is_not_rounded_to_a_narrow_type(dtype, number):
    values = [torch.randn(50).to(dtype) for _ in range(2)]
    each = number if isinstance(number, list) else [number] * 2
    expected = [v.clone().mul_(k) for v, k in zip(values, each, strict=True)]
    lists = TensorList(values)
    for found in (lists.mul(number), lists.mul_(number)):
        assert all(map(torch.equal, found.tensors, expected))
