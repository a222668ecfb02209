"""What the tensors of a batch have in common."""

import pytest
import torch

from optimplug._core.optim.batch import Form


class Other(torch.nn.Parameter):
    """A parameter of another class."""


OTHERS = {
    "device": torch.nn.Parameter(torch.ones(2, device="meta")),
    "type": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    "class": Other(torch.ones(2)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_form_is_that_of_all_or_of_none(other):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (2, 3)]
    form = Form.of(params[0])
    assert form.is_that_of(params)
    assert not form.is_that_of([*params, other])
    assert not form.is_that_of([other])
