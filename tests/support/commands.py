"""Commands as their users type them: in this process, which spares the imports, or in their own."""

import contextlib
import importlib
import io
import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

ROOT = Path(__file__).parents[2]
"""The project's folder."""


def script(path):
    """What ``python path`` runs."""
    return partial(runpy.run_path, str(path), run_name="__main__")


def module(name):
    """What ``python -m name`` runs."""
    return partial(runpy.run_module, name, run_name="__main__", alter_sys=True)


def run(main, *arguments, folder, **variables):
    """Call ``main`` as a process started in this folder would; return its status, and what it wrote.

    Of what it changes in this process (folder, path, environment, modules that lie in the folder),
    nothing is left.
    """
    out, err = _pipe(), _pipe()
    with (
        _as_in(Path(folder), variables),
        mock.patch.object(sys, "argv", ["optimplug", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = _status(main)
    out, err = (stream.buffer.getvalue().decode() for stream in (out, err))
    return SimpleNamespace(returncode=status, stdout=out, stderr=err)


def run_apart(*command, folder, **variables):
    """Run a command in a process of its own; ``python`` is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def _pipe():
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _status(main):
    """What the process would end with; other errors are the test's to see."""
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")  # as the interpreter does
            return 1
        return end.code or 0
    return 0


@contextlib.contextmanager
def _as_in(folder, variables):
    before, modules = Path.cwd(), set(sys.modules)
    importlib.invalidate_caches()  # the test may have written modules a moment ago
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
    ):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            for name in set(sys.modules) - modules:
                file = Path(getattr(sys.modules[name], "__file__", None) or "")
                # This project's folder holds an environment, and the package itself: those stay.
                stays = file.is_relative_to(sys.prefix) or name.partition(".")[0] == "optimplug"
                if file.is_relative_to(folder) and not stays:
                    del sys.modules[name]
