"""A run that goes on under another recipe is one in which the same is changed by hand."""

import pytest
from support.resuming import (
    HORIZON,
    LOSSES,
    RECIPE,
    UPDATES,
    Net,
    changed,
    gradients,
    moments,
    started,
    state_of,
    stopped,
    update,
)
from support.tensors import same_bits, same_weights

from optimplug import Recipe

SPLIT = [
    {"match": "*bias", "weight_decay": 0, "lr_scale": 2},
    {"match": "body.*", "freeze": {"until": 2}},
]
SEVERAL = changed(groups=[{"match": "head.*", "optimizer": {"name": "AdamW", "lr": 0.1}}])
CHANGES = {
    "groups": changed(groups=SPLIT),
    "one group": changed(groups=[]),
    "rates": changed(optimizer={"lr": 0.02, "weight_decay": 0.3, "betas": [0.8, 0.9]}),
    "class": changed(optimizer={"name": "Adam"}),
    "torch's class": changed(optimizer={"name": "torch.optim.AdamW"}),
    "several": SEVERAL,
    "schedule": changed(schedule="cosine"),
    "a rule before the others": changed(groups=[{"match": "*.bias", "weight_decay": 0.5}, *RECIPE["groups"]]),
    "clipping": changed(optimizer={"max_grad_norm": 0.01}),
}  # fmt: skip


def same(one, other):
    """Tell whether two states by name are the same, in every bit."""
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys()
        and all(same_bits(one[name][key], other[name][key]) for key in one[name])
        for name in one
    )


def by_hand(saved, recipe, horizon=HORIZON):
    """Do the same in a plain loop: new optimizer and schedule, moments copied by name."""
    model = Net()
    model.load_state_dict(saved.model.state_dict())
    optimizer, scheduler = Recipe(recipe).build(model, horizon)
    for t in range(UPDATES):  # without gradients, only the schedule moves
        optimizer.step()
        scheduler.step()
        scheduler.step_metric({"eval_loss": LOSSES[t]})
    kept = moments(saved.optimizer)
    for name, p in model.named_parameters():
        if name in kept:
            optimizer.state[p] = kept[name]
    for t in range(UPDATES, 12):
        gradients(model, t)
        optimizer.step()
        scheduler.step()
        scheduler.step_metric({"eval_loss": LOSSES[t]})
    return model, optimizer, scheduler


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [RECIPE, changed(optimizer={"name": "torch.optim.AdamW"})])
def test_it_is_the_run_in_which_the_same_is_changed_by_hand(before, change):
    saved = stopped(before)
    run = started(CHANGES[change])
    run.model.load_state_dict(saved.model.state_dict())
    found = run.load_state_dict(state_of(saved), resume="adapt")
    assert found.update == UPDATES
    assert sorted(found.moved) == sorted(moments(saved.optimizer))
    assert not found.new
    assert not found.dropped
    assert same(moments(run.optimizer), moments(saved.optimizer))
    model, optimizer, scheduler = by_hand(saved, CHANGES[change])
    for t in range(UPDATES, 12):
        update(run, t)
    assert same_weights(run.model, model)
    assert same(moments(run.optimizer), moments(optimizer))
    assert run.scheduler.get_last_lr() == scheduler.get_last_lr()
