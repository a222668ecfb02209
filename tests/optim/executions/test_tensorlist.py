import pytest
import torch

from optimplug._core.optim.executions.tensorlist import TensorList

# Each operation of a rule: how it is called, on a Tensor and on a TensorList alike.
CALLS = {
    "neg": lambda x, y, z, k: x.neg(),
    "sqrt": lambda x, y, z, k: x.sqrt(),
    "add_": lambda x, y, z, k: x.add_(k),
    "mul_": lambda x, y, z, k: x.mul_(k),
    "div_": lambda x, y, z, k: x.div_(k),
    "lerp_": lambda x, y, z, k: x.lerp_(y, k),
    "clamp_min_": lambda x, y, z, k: x.clamp_min_(y),
    "addcmul_": lambda x, y, z, k: x.addcmul_(y, z, value=k),
    "addcdiv_": lambda x, y, z, k: x.addcdiv_(y, z, value=k),
}


@pytest.mark.parametrize("scalars", [0.3, [0.1, 0.2, 0.7]], ids=["shared", "one each"])
@pytest.mark.parametrize("name", CALLS)
def test_an_operation_is_that_of_each_tensor(name, scalars):
    x, y, z = ([torch.rand(n) + 0.5 for n in (1, 4, 9)] for _ in range(3))
    each = scalars if isinstance(scalars, list) else [scalars] * 3
    expected = [CALLS[name](a.clone(), b, c, k) for a, b, c, k in zip(x, y, z, each, strict=True)]
    found = CALLS[name](*(TensorList([t.clone() for t in ts]) for ts in (x, y, z)), scalars)
    for a, b in zip(found.tensors, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-7, atol=0)


def test_in_place_operations_write_into_the_tensors_given():
    ones = [torch.ones(2), torch.ones(3)]
    TensorList(ones).mul_(3.0)
    assert [t.tolist() for t in ones] == [[3.0] * 2, [3.0] * 3]
