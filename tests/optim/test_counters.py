"""Each parameter's step counter is its own, however they are kept."""

import copy
import io
import pickle

import pytest
import torch
from support.labels import label
from support.tensors import parameters, same_bits

from optimplug._core.optim.counters import gather
from optimplug.optim import AdamW

CHOICES = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]


def with_gradients(count=4):
    params = parameters()[:count]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def counts(optimizer):
    return [float(kept["step"]) for kept in optimizer.state.values()]


def run(cls, change, **choice):
    """Two steps, a change of the state, two more, as the optimizer of this class does them."""
    params = with_gradients()
    optimizer = cls(params, lr=0.1, **choice)
    for _ in range(2):
        optimizer.step()
    change(optimizer.state[params[0]])
    for _ in range(2):
        optimizer.step()
    return params, counts(optimizer)


CHANGES = {
    "zeroed in place": lambda kept: kept["step"].zero_(),
    "raised in place": lambda kept: kept["step"].add_(10),
    "another tensor": lambda kept: kept.update(step=torch.tensor(7.0)),
    "of another type": lambda kept: kept.update(step=torch.tensor(7.0, dtype=torch.float64)),
}


@pytest.mark.parametrize("choice", CHOICES, ids=label)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_to_change_one_changes_one(change, choice):
    ours, found = run(AdamW, change, **choice)
    theirs, expected = run(torch.optim.AdamW, change, foreach=False)
    assert found == expected
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_number_in_place_of_a_tensor_is_taken_up():
    ours, found = run(AdamW, lambda kept: kept.update(step=2))
    theirs, expected = run(AdamW, lambda kept: None)
    assert found == expected
    assert all(map(same_bits, ours, theirs))


def test_a_skipped_step_is_not_counted_for_any():
    params = with_gradients()
    ours = AdamW(params, skip_nonfinite=True)
    ours.step()
    params[0].grad.fill_(float("nan"))
    ours.step()
    assert counts(ours) == [1.0] * 4


def test_a_parameter_without_gradient_does_not_count():
    params = with_gradients()
    ours = AdamW(params)
    ours.step()
    params[1].grad = None
    ours.step()
    params[1].grad = torch.ones_like(params[1])
    ours.step()
    assert counts(ours) == [3.0, 2.0, 3.0, 3.0]


def test_a_copy_counts_for_itself():
    ours = AdamW(with_gradients())
    ours.step()
    twin = copy.deepcopy(ours)
    ours.step()
    assert (counts(ours), counts(twin)) == ([2.0] * 4, [1.0] * 4)


def test_a_state_dict_keeps_its_counts():
    ours = AdamW(with_gradients())
    ours.step()
    saved = ours.state_dict()
    ours.step()
    assert [float(kept["step"]) for kept in saved["state"].values()] == [1.0] * 4


@pytest.mark.parametrize("write", [pickle.dumps, torch.save], ids=["pickle", "torch.save"])
def test_to_write_many_costs_no_more_than_each(write):
    def size(count):
        params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
        ours = AdamW(params)
        for p in params:
            p.grad = torch.ones(1)
        ours.step()
        if write is pickle.dumps:
            return len(pickle.dumps(ours))
        torch.save(ours.state_dict(), file := io.BytesIO())
        return file.tell()

    assert size(400) < 2.2 * size(200)


def test_counters_of_several_types_and_places_are_gathered_apart():
    cpu = torch.device("cpu")
    kept = [
        {"step": torch.tensor(3.0)},
        {"step": torch.tensor(3.0, dtype=torch.float64)},
        {"step": torch.tensor([3.0])},
        {"step": 5},
    ]
    counters, shared = gather((state, cpu) for state in kept)
    assert len(counters) == 2
    assert [float(counter) for counter in shared] == [3.0, 3.0, 3.0, 5.0]
    assert shared[0] is shared[2]
    assert kept[2]["step"].shape == ()
    for each in counters:
        each.advance(2)
    assert [float(state["step"]) for state in kept] == [5.0, 5.0, 5.0, 7.0]
    assert [float(counter) for counter in shared] == [5.0, 5.0, 5.0, 7.0]
