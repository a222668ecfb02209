import gc
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes side by side share the cores: more threads in each would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Processes side by side compile once, and nothing is left to or taken from other runs.
        os.environ["OPTIMPLUG_CACHE"] = tempfile.mkdtemp(prefix="optimplug-tests-")


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["OPTIMPLUG_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _precision():
    """Before 5, transformers' arguments leave theirs in the environment, to all that come later."""
    yield
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


@pytest.fixture(autouse=True, scope="session")
def _nothing_to_collect_yet():
    """Spare a Trainer, whose ``train`` collects garbage first, half a second over all imports."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
