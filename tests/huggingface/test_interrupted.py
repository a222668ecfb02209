"""A run that goes on is the run that was never stopped: its rates, and its weights, bit for bit."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tensors import same_weights
from support.trainers import check_resume, recipe_trainer, run
from transformers import TrainerCallback

TESTS = Path(__file__).parents[1]
PLATEAU = {"name": "ReduceLROnPlateau", "monitor": "eval_worse", "patience": 0}
WARM = {"name": "LinearLR", "start_factor": 0.1, "for": 4}
DECAY = {"name": "StepLR", "step_size": 1, "gamma": 0.7}
MIXED = [WARM, {**DECAY, "every": "epoch", "for": "1 epoch"}, {**PLATEAU, "factor": 0.5}]
ONWARD = [
    WARM,
    {**PLATEAU, "factor": 0.5, "for": 8},
    {"name": "CosineAnnealingLR", "floor": 0.01, "from": "previous"},
]
FROZEN = {"match": "body.*", "freeze": {"until": 8}}
CASES = {
    "step": [{"name": "CosineAnnealingLR"}],
    "epoch": [{**DECAY, "every": "epoch"}],
    "validation": [{**DECAY, "every": "validation"}],
    "plateau": [{**PLATEAU, "factor": 0.5}],
    "mixed": MIXED,
    "from the rate before": ONWARD,
    "frozen for a time": MIXED,
}


def maker(case, **changes):
    settings = {"eval_strategy": "steps", "eval_steps": 3, **changes}
    groups = [FROZEN] if case == "frozen for a time" else []
    return functools.partial(recipe_trainer, schedule=CASES[case], groups=groups, **settings)


@pytest.mark.parametrize("case", CASES)
def test_from_what_was_saved_after_a_step(tmp_path, case):
    _, rates = check_resume(maker(case), tmp_path, stops=(5, 6))
    assert all(len(set(held)) > 2 for held in rates.values())
    for file in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoint-6" / file, weights_only=True)


@pytest.mark.parametrize("case", ["epoch", "plateau", "mixed"])
def test_from_what_was_saved_after_an_epoch(tmp_path, case):
    check_resume(maker(case, eval_strategy="epoch"), tmp_path, stops=(6, 12), every="epoch")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_from_what_was_saved_after_any_update(tmp_path, case, accumulate):
    make = maker(case, gradient_accumulation_steps=accumulate, num_train_epochs=2 + accumulate)
    last = 18 if accumulate == 1 else 12
    check_resume(make, tmp_path, stops=range(1, last))


class Kill(TrainerCallback):
    """Ends the process in the midst of the update after the tenth, as the power going out would."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)


SAVED = {"save_strategy": "steps", "save_steps": 3}


def killed(folder):
    maker("mixed", **SAVED)(folder, callbacks=[Kill()]).train()


@pytest.mark.slow
def test_after_the_process_was_killed(tmp_path):
    code = "import sys, test_interrupted; test_interrupted.killed(sys.argv[1])"
    paths = [str(TESTS.parent), str(TESTS), str(TESTS / "huggingface")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = maker("mixed")(tmp_path / "whole")
    rates = run(whole)
    resumed = maker("mixed", **SAVED)(tmp_path / "run")
    assert run(resumed, resume=True) == {name: held[9:] for name, held in rates.items()}
    assert same_weights(resumed.model, whole.model)
