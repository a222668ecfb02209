"""The machine's own C compiler, and the libraries that it makes of our sources."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["compile_library", "compiler"]

_FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=off"),
    *("-fopenmp", "-shared", "-fPIC"),
)


@lru_cache
def compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: that of ``CC``, or ``cc``; None where there is none.

    With ``CC`` empty there is none. It must serve torch's own threads: two pools of them in one
    process would wait for each other. So far that is known of Linux alone.
    """
    try:
        command = shlex.split(os.environ.get("CC", "cc"))
    except ValueError as error:
        warnings.warn(f"CC is no command: {error}", RuntimeWarning, stacklevel=2)
        return None
    usable = sys.platform == "linux" and torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    if not (usable and command and shutil.which(command[0])):
        return None
    return tuple(command)


def compile_library(source: str) -> ctypes.CDLL | None:
    """Compile into a folder that is gone as soon as the library is loaded; warn where it fails."""
    command = compiler()
    if command is None:
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="optimplug-") as folder:
            text, library = Path(folder, "rule.c"), Path(folder, "rule.so")
            text.write_text(source)
            call = [*command, *_FLAGS, str(text), "-o", str(library), *_threads_of_torch()]
            # The source is our own; the command is the user's, as it is for every build.
            subprocess.run(call, check=True, capture_output=True)  # noqa: S603
            return ctypes.CDLL(str(library))
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        warnings.warn(
            f"{command[0]} could not compile an optimizer's rule, so torch's operators serve; "
            f"let CC name a C compiler with OpenMP, or be empty. It said: {said}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _threads_of_torch() -> list[str]:
    """Return the libraries to link so that the threads are those that torch has already."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ["-Wl,--as-needed", *map(str, found[:1])]
