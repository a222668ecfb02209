"""Fifty runs that are killed at random moments, and as they save: none is lost, none goes on wrongly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import killing

pytestmark = pytest.mark.slow

KILLS = {"loop 0": 8, "loop 1": 8, "loop 2": 8, "lightning": 10, "trainer": 8, "ddp": 4, "fsdp2": 4}
# One of whose kills the first is in the midst of a save.
SEED = 1


@pytest.mark.parametrize("kind", KILLS)
def test_what_is_killed_goes_on_to_the_end_of_a_run_that_never_was(tmp_path, kind):
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, killing.__file__, kind, str(tmp_path), str(SEED), str(KILLS[kind])],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kills"], found["alike"]) == (KILLS[kind], True)
    # The Trainer alone leaves what is not whole where a checkpoint is looked for.
    assert (found["refused"] > 0) == (kind == "trainer")


def test_they_are_fifty():
    assert {*KILLS} == {*killing.KINDS}
    assert sum(KILLS.values()) == 50
