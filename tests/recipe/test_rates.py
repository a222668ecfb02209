"""What a plan says of learning rates: of those that are probably not meant, and of no others."""

import pytest
from support.labels import label
from support.recipes import RUN, recipe_of
from torch import nn

LION = "Lion is commonly run with (0.0005): its usual rate is 0.1 to 0.33 times AdamW's"
MUON = "Muon is commonly run with (0.001): with adjust_lr_fn="
MUON_MATCHED = (
    "Muon is commonly run with (0.005): with adjust_lr_fn='match_rms_adamw', AdamW's rates fit"
)
MATCHED = {"name": "Muon", "adjust_lr_fn": "match_rms_adamw"}
ONLY_AT_FIRST = "schedule: has no effect on lr after that: Rprop takes lr at a parameter's first step alone; remove the schedule"
FALL = [{"name": "CosineAnnealingLR"}]
CASES = [
    ({"name": "Lion", "lr": 1e-3}, f"optimizer.lr: 0.001 is above what {LION}"),
    ({"name": "Lion", "lr": 3e-4}, None),
    ({"name": "Lion", "lr": 1e-6}, None),
    (
        {"name": "Lion", "lr": 0},
        "groups: lr of group 'model' is 0, so it will not move; freeze it instead",
    ),
    ({"name": "Muon", "lr": 0.02}, None),
    ({"name": "Muon", "lr": 1e-3}, None),
    (
        {"name": "Muon", "lr": 2e-4},
        f"optimizer.lr: 0.0002 is below what {MUON}'original', rates are near 0.02",
    ),
    ({**MATCHED, "lr": 2e-4}, None),
    ({**MATCHED, "lr": 0.02}, f"optimizer.lr: 0.02 is above what {MUON_MATCHED}"),
    ({"name": "Adafactor", "lr": 1e-2}, None),
    ({"name": "Prodigy", "lr": 1}, None),
    (
        {"name": "Prodigy", "lr": 1e-3},
        "optimizer.lr: 0.001 is below what Prodigy is commonly run with (0.1): it is a factor of the rate that is found; take 1",
    ),
    # What AdamW is fine-tuned with, and more.
    *(({"name": "AdamW", "lr": lr}, None) for lr in (1e-6, 1e-5, 1e-3, 0.1)),
    ({"name": "SGD", "lr": 1e-3}, None),
    ({"name": "SGD", "lr": 1}, None),
    # Of what others have made, nothing is known.
    ({"name": "torch.optim.Adadelta", "lr": 1e-3}, None),
    ({"name": "lion_pytorch.Lion", "lr": 1e-3}, None),
    ({"name": "Rprop", "lr": 1e-3}, None),
    ({"name": "Rprop", "lr": 1e-3, "schedule": FALL}, ONLY_AT_FIRST),
    ({"name": "SGD", "lr": 1e-3, "schedule": FALL}, None),
]


def warnings_of(optimizer):
    recipe = recipe_of(**{"schedule": (), **optimizer})
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    return [str(found) for found in recipe.plan(model, RUN).warnings]


@pytest.mark.parametrize(("optimizer", "warning"), CASES, ids=label)
def test_a_rate(optimizer, warning):
    assert warnings_of(optimizer) == ([] if warning is None else [warning])


def test_the_rate_of_a_rules_own_optimizer():
    rule = {"match": "1.*", "optimizer": {"name": "Lion", "lr": 1e-3}}
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    (found,) = recipe_of(rule).plan(model, RUN).warnings
    assert str(found) == f"groups[0].optimizer.lr: 0.001 is above what {LION}"
