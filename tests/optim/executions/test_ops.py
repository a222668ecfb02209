"""Every operation of the table: the same in each of its forms as Tensor's own."""

import pytest
import torch
from support.labels import label
from support.operations import CALLS, CASES, ON_BITS, call, check_alone, values
from support.rows import each_in_turn

from optimplug._core.optim.executions.compiled import Compiled
from optimplug._core.optim.executions.compiler import compiler
from optimplug._core.optim.executions.operands import Functional, TensorList
from optimplug._core.optim.executions.ops import OPERATIONS


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


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("case", "dtype"), each_in_turn(CASES, [torch.float32, torch.float64]), ids=label
)
def test_compiled(case, dtype):
    check_alone(Compiled(), case, dtype)


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
