"""The machine's own C compiler, and the libraries that it makes of our sources."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

import torch

from optimplug._core.optim.executions.kernel_cache import Kernel, cache_folder

__all__ = ["compile_library", "compiler"]

_FLAGS = (
    *("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=off"),
    *("-fopenmp", "-shared", "-fPIC"),
)

TIME_OUT = 10.0
"""After so many seconds a compiler is given up: one takes a fraction of a second, even where the
machine is busy, but one that waits for a license or a dead disk may wait for ever."""

_given_up: set[tuple[str, ...]] = set()
"""The commands that have not come back in that time."""


@lru_cache
def compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: that of ``CC``, or ``cc``; None where there is none.

    With ``CC`` empty there is none. It must serve torch's own threads: two pools of them in one
    process would wait for each other. So far that is known of Linux alone.
    """
    try:
        command = tuple(shlex.split(os.environ.get("CC", "cc")))
    except ValueError as error:
        warnings.warn(f"CC is no command: {error}", RuntimeWarning, stacklevel=2)
        return None
    usable = sys.platform == "linux" and torch.backends.openmp.is_available()  # type: ignore[no-untyped-call]
    if not (usable and command and shutil.which(command[0])) or command in _given_up:
        return None
    return command


def compile_library(source: str) -> ctypes.CDLL | None:
    """Return the library of a source, kept or compiled; warn where there can be none."""
    command = compiler()
    if command is None:
        return None
    until = time.monotonic() + TIME_OUT
    try:
        folder = cache_folder()
        if folder is None:
            return _compiled(command, source, until)
        kernel = Kernel(folder, _key(command, source))
        library = kernel.load()
        if library is not None:
            return library
        with kernel.alone(until - time.monotonic()):
            # Whoever was at it before may have left it here.
            return kernel.load() or _compiled(command, source, until, kernel)
    except (subprocess.TimeoutExpired, TimeoutError):
        _given_up.add(command)
        compiler.cache_clear()
        _warn(command, f"It was given up after {TIME_OUT:g} seconds.")
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", None) or b""
        _warn(command, f"It said: {said.decode(errors='replace').strip() or error}")
    return None


def _warn(command: Sequence[str], what: str) -> None:
    warnings.warn(
        f"{command[0]} could not compile an optimizer's rule, so torch's operators serve; "
        f"let CC name a C compiler with OpenMP, or be empty. {what}",
        RuntimeWarning,
        stacklevel=3,
    )


def _compiled(
    command: Sequence[str], source: str, until: float, kernel: Kernel | None = None
) -> ctypes.CDLL:
    """Compile in a folder that is gone as soon as the library is loaded, and keep it if asked."""
    with tempfile.TemporaryDirectory(prefix="optimplug-") as folder:
        text, library = Path(folder, "rule.c"), Path(folder, "rule.so")
        text.write_text(source)
        _run([*command, *_FLAGS, str(text), "-o", str(library), *_threads_of_torch()], until)
        loaded = ctypes.CDLL(str(library))
        if kernel is not None:
            kernel.keep(library.read_bytes())
        return loaded


def _key(command: tuple[str, ...], source: str) -> str:
    """Return a name for all that a library depends on: of our own version, that is the source."""
    parts = (_version(command), *_FLAGS, *_threads_of_torch(), _cpu())
    return hashlib.sha256("\0".join((*parts, source)).encode()).hexdigest()


@lru_cache
def _version(command: tuple[str, ...]) -> str:
    """Return which compiler it is, and of which version."""
    path = Path(shutil.which(command[0]) or command[0]).resolve()
    found = path.stat()
    # What it says of itself alone would not tell one build from another, nor a file alone the
    # compiler behind a wrapper.
    said = _run([*command, "--version"], time.monotonic() + TIME_OUT)
    return "\0".join((*command, str(path), str(found.st_size), str(found.st_mtime_ns), said))


@lru_cache
def _cpu() -> str:
    """Return which processor this is: the compiler uses all that it can do, and only that."""
    with Path("/proc/cpuinfo").open() as file:
        lines = list(islice(file, 64))  # of many processors, the first
    first = lines[: lines.index("\n")] if "\n" in lines else lines
    # Others, as its clock, are never the same twice.
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ", "isa")
    return "".join([platform.machine(), "\n", *(line for line in first if line.startswith(kept))])


def _run(call: Sequence[str], until: float) -> str:
    """Run a command and return what it says; end it, and all that it has started, when it is late.

    Raises:
        CalledProcessError: it failed.
        TimeoutExpired: it is not done by ``until``, on the monotonic clock.
    """
    # What it says goes to files: of a pipe, a process that it has left behind could be the end.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # The source is our own; the command is the user's, as it is for every build.
        process = subprocess.Popen(  # noqa: S603
            call, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(max(until - time.monotonic(), 0))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        said = [_content(file) for file in (out, err)]
    if code:
        raise subprocess.CalledProcessError(code, call, *said)
    return said[0].decode(errors="replace")


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@lru_cache
def _threads_of_torch() -> tuple[str, ...]:
    """Return the libraries to link so that the threads are those that torch has already."""
    folder = Path(torch.__file__).parent
    found = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ("-Wl,--as-needed", *map(str, found[:1]))
