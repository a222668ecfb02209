"""A sample of a tensor's elements, for what need not look at all of them."""

import pytest
import torch

from optimplug._core.sample import sample


@pytest.mark.parametrize("size", [5, 100, 128, 1000, 4099, 2**14])
@pytest.mark.parametrize("most", [1, 100, 4096])
def test_it_has_elements_of_their_own_each_and_all_of_a_small_tensor(size, most):
    found = sample(torch.arange(size), most)
    assert len(found) == len(set(found.tolist())) == min(size, most)


def test_it_is_spread_over_rows_and_columns():
    rows = torch.arange(256).unsqueeze(1).expand(256, 512)
    for axis, wide in ((rows, 256), (torch.arange(512).expand(256, 512), 512)):
        counts = torch.bincount(sample(axis, 8192), minlength=wide)
        assert counts.min() >= 0.4 * 8192 / wide
        assert counts.max() <= 1.6 * 8192 / wide


def test_the_order_in_memory_does_not_matter():
    x = torch.randn(40, 50)
    assert torch.equal(sample(x.t().contiguous().t(), 64), sample(x, 64))


def test_the_next_random_number_is_the_same():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    sample(torch.ones(1000), 10)
    assert torch.rand(()) == expected
