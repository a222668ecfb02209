"""Several optimizers in one under TRL's SFTTrainer: a small Llama, from a config."""

import pytest
from support.huggingface_runs import StopAfter
from support.language import llama, rows, tokenizer
from support.tensors import same_weights
from support.trainers import arguments

from optimplug.huggingface import with_recipe
from optimplug.optim import MultiOptimizer

trl = pytest.importorskip("trl")
# TRL sets arguments by names that transformers is about to drop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

HIDDEN = "Muon"
RECIPE = {
    "optimizer": {
        "name": HIDDEN,
        "lr": 1e-3,
        "max_grad_norm": 1.0,
        "fallback": {"name": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
    },
    "groups": [{"layer_decay": 0.8}, {"no_decay": ["norm", "bias"]}],
    "schedule": {"preset": "cosine", "warmup": "20%"},
}


def trainer_of(folder, *callbacks):
    return with_recipe(trl.SFTTrainer)(
        model=llama(),
        args=arguments(folder, trl.SFTConfig, max_length=8, bf16=False),
        train_dataset=rows(),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        recipe=RECIPE,
    )


def test_a_run_resumes_exactly_with_an_optimizer_for_matrices_and_one_for_the_rest(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    optimizer = whole.optimizer.optimizer
    assert type(optimizer) is MultiOptimizer
    found = {n: g["optimizer"] for g in optimizer.param_groups for n in g["param_names"]}
    hidden = {name for name, own in found.items() if own == HIDDEN}
    named = dict(whole.model.named_parameters())
    assert hidden == {name for name, p in named.items() if ".layers." in name and p.ndim == 2}
    assert not same_weights(whole.model, llama())
    trainer_of(tmp_path / "part", StopAfter(7)).train()
    resumed = trainer_of(tmp_path / "part")
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-7"))
    assert same_weights(resumed.model, whole.model)
