"""RecipeTrainer in two processes that ``accelerate launch`` starts, on CPU with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.launched import ANOTHER, RECIPE, result, trainer_of
from support.trainers import run

ROOT = Path(__file__).parents[2]
ONE_OF_EACH = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
FSDP2 = [
    *("--use_fsdp", "--fsdp_version", "2"),
    *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_transformer_layer_cls_to_wrap", "BertLayer"),
]
RECIPES = {"recipe": RECIPE, "another": ANOTHER}
WAYS = {"ddp": (["--multi_gpu"], "MULTI_CPU"), "fsdp2": (FSDP2, "FSDP")}


def launch(way, flags, folder, *checkpoint, processes=2):
    """Run the script in so many processes; return what each of them has saved."""
    # Not by its command: that imports every extra of accelerate that happens to be installed.
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *ONE_OF_EACH]
    command += ["--num_processes", str(processes), "--main_process_port", "0"]
    command += [
        "--num_cpu_threads_per_process",
        "1",
        str(ROOT / "tests" / "support" / "launched.py"),
    ]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, way, str(folder), *map(str, checkpoint)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [folder / f"{rank}.pt" for rank in range(processes)]
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "which"), [("ddp", "recipe"), ("fsdp2", "recipe"), ("fsdp2", "another")]
)
def test_two_processes_train_as_one(tmp_path, way, which):
    flags, kind = WAYS[way]
    trainer = trainer_of(tmp_path / "alone", recipe=RECIPES[which])
    alone = result(trainer, run(trainer))
    first, second = launch(which, flags, tmp_path)
    assert first["kind"] == second["kind"] == f"DistributedType.{kind}"
    assert (first["sharded"] > 0) == (way == "fsdp2")
    name = RECIPES[which]["optimizer"]["name"].split(".")[-1]
    assert first["optimizer"] in (name, f"Clipped{name}")
    assert first["rates"] == second["rates"] == alone["rates"]
    assert len(set(next(iter(alone["rates"].values())))) == 8  # of a warm-up, then of a plateau
    assert first["scheduler"] == second["scheduler"]
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-4)
    rest, _ = launch(which, flags, tmp_path, tmp_path / "run" / "checkpoint-7")
    assert rest["rates"] == {name: rates[7:] for name, rates in first["rates"].items()}
    for name, weight in first["weights"].items():
        assert torch.equal(rest["weights"][name], weight)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["recipe", "callback"])
def test_processes_that_see_other_metrics_follow_the_first(tmp_path, way):
    first, second = launch(f"own metrics, {way}", ["--multi_gpu"], tmp_path)
    assert first["rates"] == second["rates"]
    (rates,) = first["rates"].values()
    assert rates[-4:] == [0.1 / 8, 0.1 / 8, 0.1 / 16, 0.1 / 16]
    assert first["scheduler"] == second["scheduler"]
