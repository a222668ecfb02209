"""A plugin for pytest, in a process of its own: tensors on the CPU go through Triton's interpreter.

``TRITON_INTERPRET=1 python -m pytest -p support.interpreter tests/...``. Triton looks at the
variable as it is imported, for good: no process can have both kinds of kernels.
"""

import os

import torch

from optimplug._core.optim.executions.triton import there

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("set TRITON_INTERPRET=1 before this process begins")
there.DEVICES.add("cpu")
assert there.triton_serves(torch.device("cpu"))  # tried out now, so that no test sees it


def pytest_configure(config):
    # Elements that are not there are computed all the same, and thrown away.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
