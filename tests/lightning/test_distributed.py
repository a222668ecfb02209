"""Recipes in fits of several processes, and in one that is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.lightning_runs import (
    CALM,
    CLIPPED,
    FOLLOWING,
    Rates,
    Tiny,
    batches,
    fit,
    plain_rates,
    rows,
    trainer_of,
)
from support.tensors import same_weights
from torch.utils.data import DistributedSampler

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parents[1] / "support" / "lightning_worker.py"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Two processes with batches of four rows take half as many updates for an epoch.
UPDATES = 3


def work(kind, folder, launcher=()):
    root = WORKER.parents[1]
    path = os.pathsep.join([str(root.parent), str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *launcher, str(WORKER), kind, str(folder)]
    # What a command line in this process has seeded would change the order of the batches.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PL_")}
    env = {**kept, "PYTHONPATH": path}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def reports(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def worse_each_time(total=3 * UPDATES, recipe=CALM):
    after = range(UPDATES, total + 1, UPDATES)
    return plain_rates(recipe, total, UPDATES, validated_after=after)


class AsTwo:
    """The batches of two processes put together, in Lightning's shuffled order."""

    epoch = 0

    def __len__(self):
        return UPDATES

    def __iter__(self):
        samplers = [DistributedSampler(rows(), 2, rank) for rank in range(2)]
        for sampler in samplers:
            sampler.set_epoch(self.epoch)
        self.epoch += 1
        orders, data = [list(sampler) for sampler in samplers], rows().tensors[0]
        for i in range(0, 4 * UPDATES, 4):
            yield [data[[row for order in orders for row in order[i : i + 4]]]]


def alone(folder, recipe=CALM):
    rates, module = Rates(), Tiny(recipe)
    trainer_of(folder, rates).fit(module, AsTwo(), batches())
    return rates.seen, dict(module.named_parameters())


def test_two_processes_train_as_one_and_decide_together(tmp_path):
    done = work("data_parallel", tmp_path, TWO)
    assert done.returncode == 0, done.stderr
    first, second = reports(tmp_path)
    assert first["horizon"] == second["horizon"] == (3 * UPDATES, UPDATES)
    # By its own metric, the first process would never have reduced the rate.
    assert first["rates"] == second["rates"] == worse_each_time()
    rates, weights = alone(tmp_path)
    assert rates == first["rates"]
    for name, p in weights.items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], p.detach())


@pytest.mark.parametrize(("kind", "recipe"), [("sharded", CALM), ("sharded, clipped", CLIPPED)])
def test_sharded_parameters_train_and_resume(tmp_path, kind, recipe):
    done = work(kind, tmp_path, TWO)
    assert done.returncode == 0, done.stderr
    whole, resumed = reports(tmp_path / "whole"), reports(tmp_path / "resumed")
    assert all(all(report["shards"]) for report in (*whole, *resumed))
    _, weights = alone(tmp_path, recipe)
    for report, rest in zip(whole, resumed, strict=True):
        assert report["horizon"] == (3 * UPDATES, UPDATES)
        assert report["rates"] == worse_each_time(recipe=recipe)
        assert rest["rates"] == report["rates"][2 * UPDATES :]
        for name, p in weights.items():
            torch.testing.assert_close(report["weights"][name], p.detach())
            assert torch.equal(report["weights"][name], rest["weights"][name])


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    done = work("killed", tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    last = max(tmp_path.glob("*.ckpt"))
    assert last.name == "step=08.ckpt"
    settings = {"val_check_interval": 4}
    whole, rates = fit(tmp_path, FOLLOWING, **settings)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        module, rest = fit(tmp_path, FOLLOWING, ckpt_path=last, **settings)
    assert rest == rates[8:]
    assert same_weights(module, whole)
