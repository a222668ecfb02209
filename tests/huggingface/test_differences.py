"""What a checkpoint brings with it that the recipe has otherwise."""

import pytest
import torch

from optimplug.huggingface.differences import settings_of, tell_differences
from optimplug.optim import AdamW


def settings(**options):
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    return settings_of(AdamW([{"params": [w], "name": "all"}], **options))


def test_settings_that_apply_are_told():
    with pytest.warns(UserWarning, match=r"all: weight_decay 0.1 \(the recipe's is 0.01\)"):
        tell_differences(settings(), settings(weight_decay=0.1), "checkpoint-1")


def test_storage_stays_the_optimizers_own_and_is_no_difference():
    saved = settings(rounding="kahan", state_dtype="bfloat16")
    tell_differences(settings(rounding="exact", state_dtype="float32"), saved, "checkpoint-1")
