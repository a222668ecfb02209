"""Each parameter's step counter is its own, however they are kept."""

import copy
import io
import pickle

import pytest
import torch
import torch.multiprocessing as multiprocessing
from support.labels import label
from support.tensors import parameters, same_bits

from optimplug._core.optim.step.counters import gather, rows
from optimplug.optim import AdamW, NAdam

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
    places = gather((state, cpu, ("step",)) for state in kept)
    assert [row[-1] for row in rows(places)] == [(3.0,), (3.0,), (3.0,), (5.0,)]
    assert [i for i, row in enumerate(rows(places)) if row == rows(places)[0]] == [0, 2]
    shared = [place.counters.count(place.at).step for place in places]
    counters = {id(place.counters): place.counters for place in places}.values()
    assert len(counters) == 2
    assert [place.at for place in places] == [0, 0, 1, 2]
    assert [float(counter) for counter in shared] == [3.0, 3.0, 3.0, 5.0]
    assert kept[2]["step"].shape == ()
    for each in counters:
        each.advance(2)
    assert [float(state["step"]) for state in kept] == [5.0, 5.0, 5.0, 7.0]
    assert [float(counter) for counter in shared] == [5.0, 5.0, 5.0, 7.0]


def count_in_another_process(params, optimizer):
    """A worker of Hogwild training."""
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA does not outlive a fork")
@pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamW], ids=["torch", "ours"])
@pytest.mark.parametrize("when", ["before the first step", "after it"])
def test_processes_that_share_a_state_count_together(cls, when):
    params = with_gradients(2)
    optimizer = cls(params)
    if when == "before the first step":
        for p in params:
            kept = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p].update(step=torch.zeros(()), **kept)
    else:
        optimizer.step()
    begun = counts(optimizer)
    for tensor in (*params, *(v for kept in optimizer.state.values() for v in kept.values())):
        tensor.share_memory_()
    worker = multiprocessing.get_context("fork").Process(
        target=count_in_another_process, args=(params, optimizer)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process that forks must have no threads of torch's beside it
    worker.start()
    worker.join()
    torch.set_num_threads(threads)
    assert worker.exitcode == 0
    assert counts(optimizer) == [count + 3 for count in begun]
    optimizer.step()
    assert counts(optimizer) == [count + 4 for count in begun]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamW], ids=["torch", "ours"])
def test_a_counter_whose_memory_is_replaced_goes_on(cls):
    optimizer = cls(with_gradients(2))
    optimizer.step()
    for kept in optimizer.state.values():
        for value in kept.values():
            value.data = value.data.clone()  # as helpers do that move a state to a device
    optimizer.step()
    assert counts(optimizer) == [2.0, 2.0]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, AdamW], ids=["torch", "ours"])
def test_a_shallow_copy_has_the_same_state(cls):
    optimizer = cls(with_gradients(2))
    optimizer.step()
    twin = copy.copy(optimizer)
    assert twin.state is optimizer.state
    twin.step()
    optimizer.step()
    assert counts(optimizer) == counts(twin) == [3.0, 3.0]


def test_a_count_that_is_no_number_is_no_error():
    optimizer = AdamW(with_gradients(2))
    optimizer.step()
    next(iter(optimizer.state.values()))["step"].fill_(float("nan"))
    optimizer.step()
    assert counts(optimizer)[1] == 2.0


def test_counters_are_on_the_cpu_whatever_the_default_device():
    params = with_gradients(1)
    with torch.device("meta"):
        optimizer = AdamW(params)
        optimizer.step()
    assert optimizer.state[params[0]]["step"].is_cpu


def with_scalars(foreach):
    """NAdam keeps a number for each parameter beside its count."""
    params = with_gradients()
    return params, NAdam(params, lr=0.1, foreach=foreach)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_a_number_beside_the_count_belongs_to_its_parameter(foreach):
    params, ours = with_scalars(foreach)
    theirs_params = with_gradients()
    theirs = torch.optim.NAdam(theirs_params, lr=0.1, foreach=False)
    for optimizer, own in ((ours, params), (theirs, theirs_params)):
        for step in range(6):
            own[0].grad = None if step == 2 else torch.ones_like(own[0])
            if step == 3:
                optimizer.state[own[1]]["mu_product"].fill_(0.5)
            if step == 4:
                optimizer.state[own[2]]["mu_product"] = torch.tensor(0.25)
            optimizer.step()
    for p, q in zip(params, theirs_params, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
        assert same_bits(ours.state[p]["mu_product"], theirs.state[q]["mu_product"])


def test_a_skipped_update_leaves_numbers_as_they_are():
    _, ours = with_scalars(None)
    ours.step()
    before = copy.deepcopy(ours.state_dict()["state"])
    ours.found_inf = torch.ones(())  # as a GradScaler lends it
    ours.step()
    for kept, held in zip(before.values(), ours.state_dict()["state"].values(), strict=True):
        assert all(same_bits(kept[name], held[name]) for name in kept)
