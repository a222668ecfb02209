"""A run goes from one process to two and back, and its groups are cut otherwise on the way."""

import logging

import pytest
import torch
import torch.distributed as dist
from support.processes import in_two_processes
from support.resuming import Net, changed, started
from support.sharding import go_on, load_parts, save_parts, shard, whole_state, whole_weights
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from optimplug import Horizon, StateError

HORIZON = Horizon(12, 4)
FIRST = changed(groups=[{"match": "head.*", "weight_decay": 0.1}], schedule="cosine")
SECOND = changed(FIRST, groups=[{"match": "*bias", "weight_decay": 0, "lr_scale": 2}])
THIRD = changed(SECOND, groups=[], optimizer={"lr": 0.05})
CHANGES = {
    "AdamW": {},
    "schedule-free": {"optimizer": {"name": "ScheduleFreeAdamW"}, "schedule": []},
    "Adafactor": {"optimizer": {"name": "Adafactor", "lr": 0.1}},
}


def recipes(change):
    more = CHANGES[change]
    if change == "AdamW":
        return FIRST, SECOND, THIRD
    return tuple(
        {**recipe, **more, "optimizer": {"lr": recipe["optimizer"]["lr"], "max_grad_norm": 1.0, **more["optimizer"]}}
        for recipe in (FIRST, SECOND, THIRD)
    )  # fmt: skip


def go(run, model, updates):
    """Step with the gradients of one process, of which each takes its shard."""
    for t in updates:
        generator = torch.Generator().manual_seed(t)
        for p in model.parameters():
            g = torch.randn(p.shape, generator=generator)
            sharded = isinstance(p, DTensor)
            p.grad = distribute_tensor(g, p.device_mesh, p.placements) if sharded else g
        run.step()


class Heard(logging.Handler):
    """What the package says in its log."""

    def __init__(self):
        super().__init__("INFO")
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def go_on_in_two(folder, recipe, whole):
    heard = Heard()
    logging.getLogger("optimplug").addHandler(heard)
    model = shard(Net())
    run = started(recipe, model, HORIZON)
    if whole:
        state = torch.load(f"{folder}/one.pt", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, state["weights"], options=options)
        found = go_on(run, state["state"], state["plain"], "adapt")
    else:
        with pytest.raises(StateError) as refused:
            load_parts(f"{folder}/one", run, model)
        assert "groups" in str(refused.value)
        assert run.scheduler.last_epoch == 0
        found = load_parts(f"{folder}/one", run, model, "adapt")
    go(run, model, range(4, 8))
    save_parts(f"{folder}/two", run, model)
    all_of_it = whole_state(run, model)
    if dist.get_rank() == 0:
        torch.save(all_of_it, f"{folder}/two.pt")
    told = [text for text in heard.texts if "resumed" in text]
    return {"found": found.to_dict(), "told": told, "weights": whole_weights(model)}


def one(recipe, folder, whole, name=None, updates=()):
    """Go on in one process from what is there, or begin."""
    model = Net()
    run = started(recipe, model, HORIZON)
    found = None
    if name is not None and whole:
        state = torch.load(f"{folder}/{name}.pt", weights_only=True)
        model.load_state_dict(state["weights"])
        found = go_on(run, state["state"], state["plain"], "adapt")
    elif name is not None:
        found = load_parts(f"{folder}/{name}", run, model, "adapt")
    go(run, model, updates)
    return run, model, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("change", "whole"),
    [("AdamW", True), ("Adafactor", True), *((change, False) for change in CHANGES)],
)
def test_from_one_to_two_and_back_with_other_groups(tmp_path, change, whole):
    first, second, third = recipes(change)
    folder = str(tmp_path)
    run, model, _ = one(first, folder, whole, updates=range(4))
    save_parts(f"{folder}/one", run, model)
    torch.save(whole_state(run, model), f"{folder}/one.pt")
    here, there = in_two_processes(go_on_in_two, folder, second, whole)
    run, model, last = one(third, folder, whole, "two", range(8, 12))

    # The same in one process throughout, by files of torch.save.
    truth, alone, _ = one(first, folder, whole, updates=range(4))
    expected = []
    for recipe, updates in ((second, range(4, 8)), (third, range(8, 12))):
        state, weights = truth.state_dict(), alone.state_dict()
        alone = Net()
        alone.load_state_dict(weights)
        truth = started(recipe, alone, HORIZON)
        expected.append(truth.load_state_dict(state, resume="adapt").to_dict())
        go(truth, alone, updates)
    assert here["found"] == there["found"] == expected[0]
    assert last.to_dict() == expected[1]
    assert {*here["found"]["moved"]} == {*dict(Net().named_parameters())}
    assert (len(here["told"]), there["told"]) == (1, [])
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert torch.equal(here["weights"][name], there["weights"][name])
