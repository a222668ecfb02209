"""What may be otherwise between a checkpoint and the run that goes on, for every runtime.

Each case is written for a model with a ``body`` and a ``head``, whose run has 12 updates.
"""

from typing import Any, NamedTuple

WARM_UP = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
RULES = [{"match": "body.*", "freeze": {"until": 2}}, {"match": "head.*", "weight_decay": 0.1}]
BASE = {
    "optimizer": {"name": "AdamW", "lr": 0.1, "max_grad_norm": 1.0},
    "groups": RULES,
    "schedule": [WARM_UP, {"name": "CosineAnnealingLR"}],
}


class Case(NamedTuple):
    """A difference: what the table of an error says of it, and what adapting leaves."""

    recipe: dict[str, Any]
    row: str
    """What a row of the table matches."""
    dropped: tuple[str, ...] = ()
    """Which parameters' states are left out."""


def with_optimizer(**settings):
    return {**BASE, "optimizer": {**BASE["optimizer"], **settings}}


def with_groups(*rules):
    return {**BASE, "groups": list(rules)}


HEAD = ("head.weight", "head.bias")
BODY = ("body.weight", "body.bias")
CASES = {
    "lr": Case(with_optimizer(lr=0.02), r"lr of body, head +0\.1 +0\.02 +adapt"),
    "lr of a rule": Case(
        with_groups(RULES[0], {**RULES[1], "lr_scale": 2}), r"lr of head +0\.1 +0\.2 +adapt"
    ),
    "weight decay": Case(
        with_groups(RULES[0], {**RULES[1], "weight_decay": 0.5}),
        r"weight_decay of head +0\.1 +0\.5 +adapt",
    ),
    "betas": Case(
        with_optimizer(betas=[0.8, 0.9]), r"betas of .* +\(0\.9, 0\.999\) +\(0\.8, 0\.9\) +adapt"
    ),
    "clipping": Case(with_optimizer(max_grad_norm=0.5), r"max_grad_norm +1 +0\.5 +adapt"),
    "no clipping": Case(with_optimizer(max_grad_norm=None), r"max_grad_norm +1 +none +adapt"),
    "class": Case(with_optimizer(name="Adam"), r"optimizer of body, head +AdamW +Adam +adapt"),
    "torch's class": Case(
        with_optimizer(name="torch.optim.AdamW"),
        r"optimizer of body, head +AdamW +torch\.optim\.AdamW +adapt",
    ),
    "optimizer of a rule": Case(
        with_groups(RULES[0], {**RULES[1], "optimizer": {"name": "Lion", "lr": 1e-4}}),
        r"optimizer of head.* AdamW +Lion, whose state begins anew +adapt",
        HEAD,
    ),
    "cut": Case(
        with_groups(RULES[0], {"match": "head.weight", "weight_decay": 0.1}),
        r"groups +2: body, head +3: body, head\.weight, head\.bias +adapt",
    ),
    "joined": Case({**BASE, "groups": []}, r"groups +2: body, head +1: model +adapt"),
    "phase": Case({**BASE, "schedule": [WARM_UP, {"name": "LinearLR", "end_factor": 0.5}]},
                  r"schedule +LinearLR.* +LinearLR.* +adapt\n +for 4; CosineAnnealingLR\(T_max=8\) for 8 +for 4; LinearLR"),
    "its length": Case({**BASE, "schedule": [{**WARM_UP, "for": 6}, BASE["schedule"][1]]},
                       r"schedule +LinearLR.*=4\) +LinearLR.*=6\) +adapt\n +for 4; .* for 6; .*\n"),
    "no schedule": Case({**BASE, "schedule": []}, r"schedule +LinearLR.* +constant +adapt"),
    "schedule of a rule": Case(
        with_groups(RULES[0], {**RULES[1], "schedule": "constant"}),
        r"schedule of groups\[1\] +none +constant.* +adapt",
    ),
    "freeze until": Case(
        with_groups({**RULES[0], "freeze": {"until": 8}}, RULES[1]),
        r"freeze of groups\[0\] +until 2 +until 8 +adapt",
    ),
    "timed freeze lifted": Case(with_groups(RULES[1]), r"freeze of groups\[0\] +until 2 +none +adapt"),
    "frozen": Case(
        with_groups({"match": "body.*", "freeze": True}, RULES[1]),
        r"parameters +body\.weight, body\.bias +none +adapt",
        BODY,
    ),
    "storage": Case(
        with_optimizer(state_dtype="bfloat16"), r"state_dtype of body, head +none +bfloat16 +adapt"
    ),
}  # fmt: skip
OTHERS = {
    "SGD": with_optimizer(name="SGD", momentum=0.9),
    "torch's SGD": with_optimizer(name="torch.optim.SGD", momentum=0.9),
    "Lion": with_optimizer(name="Lion", lr=1e-4),
    "RAdam": with_optimizer(name="RAdam"),
    "Muon without AdamW": {
        **BASE,
        "layers": ["body"],
        "optimizer": {"name": "Muon", "lr": 0.02, "fallback": {"name": "Lion", "lr": 1e-4}},
    },
}
"""Recipes whose optimizers keep another state than the base's."""
