"""Compiled kernels on disk: made once, and nothing is loaded that somebody else could have written."""

import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.tensors import descend, parameters

from optimplug._core.optim.executions import compiled, compiler, kernel_cache
from optimplug.optim import AdamW

pytestmark = pytest.mark.skipif(
    compiler.compiler() is None, reason="there is no C compiler that torch's threads can serve"
)

SOURCE = "int answer(void) { return 42; }"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of the test's own, in a process that knows nothing yet."""
    monkeypatch.setenv("OPTIMPLUG_CACHE", str(tmp_path / "cache"))
    caches = [compiler.compiler, compiler._version, compiler._cpu, kernel_cache._tell]
    caches += [kernel_cache._tell_of_file]
    caches += [compiled._update_library, compiled._squares_kernel]
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "cache"
    compiler._given_up.clear()
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """What the compiler was called for, but for its version."""
    made = []
    run = compiler._run

    def watched(call, until):
        made.extend([call] if "--version" not in call else [])
        return run(call, until)

    monkeypatch.setattr(compiler, "_run", watched)
    return made


def made(source=SOURCE):
    return compiler.compile_library(source).answer()


def kernel(folder):
    (found,) = folder.glob("*.so")
    return found


def test_a_second_process_compiles_nothing(folder, calls):
    assert made() == 42
    assert made() == 42
    assert len(calls) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kernel(folder).stat().st_mode & 0o777 == 0o600


def test_a_kept_kernel_updates_as_a_new_one(calls):
    def run():
        compiled._update_library.cache_clear()
        compiled._squares_kernel.cache_clear()
        return descend(AdamW(parameters(), max_grad_norm=1.0), 3)

    fresh, kept = run(), run()
    assert len(calls) == 2  # the update and the norm
    assert all(map(torch.equal, fresh, kept))


def of_another_cpu(monkeypatch):
    monkeypatch.setattr(compiler, "_cpu", lambda: "another")


def of_other_flags(monkeypatch):
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-g0"))


def of_another_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "_version", lambda command: "13.1")


def of_another_command(monkeypatch):
    monkeypatch.setenv("CC", "cc -g0")
    compiler.compiler.cache_clear()


OTHERS = [*(of_another_cpu, of_other_flags, of_another_compiler, of_another_command)]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.__name__)
def test_a_kernel_of_another_make_is_not_taken(other, folder, calls, monkeypatch):
    made()
    other(monkeypatch)
    assert made() == 42
    assert len(calls) == 2
    assert len(list(folder.glob("*.so"))) == 2


def test_another_source_is_another_kernel(calls):
    made()
    assert made(SOURCE.replace("42", "43")) == 43
    assert len(calls) == 2


def truncated(file, content):
    file.write_bytes(content[:1000])


def emptied(file, content):
    file.write_bytes(b"")


def changed(file, content):
    file.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])


def another_kernel(file, content):
    whole = kernel_cache.Kernel(file.parent, "0" * 64)
    whole.keep(b"not that one")
    whole.path.replace(file)


def writable_for_the_group(file, content):
    file.chmod(0o660)


def writable_for_all(file, content):
    file.chmod(0o602)


def a_link(file, content):
    there = file.with_suffix(".there")
    file.replace(there)
    file.symlink_to(there)


def a_pipe(file, content):
    file.unlink()
    os.mkfifo(file, 0o600)


FILES = [
    *(truncated, emptied, changed, another_kernel, writable_for_the_group, writable_for_all),
    *(a_link, a_pipe),
]


@pytest.mark.parametrize("spoil", FILES, ids=lambda spoil: spoil.__name__)
def test_a_file_that_is_not_as_it_was_written_is_told_of_and_made_again(
    spoil, folder, calls, caplog
):
    made()
    sound = kernel(folder).read_bytes()
    spoil(kernel(folder), sound)
    with caplog.at_level(logging.WARNING, "optimplug"):
        assert made() == 42
    assert len(calls) == 2
    assert "made again" in caplog.text
    made()
    assert len(calls) == 2  # it has been replaced by what can be loaded
    assert not kernel(folder).is_symlink()


def test_a_file_of_another_user_is_not_loaded(folder, calls, monkeypatch, caplog):
    made()
    find = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: owned_by(os.geteuid() + 1, find(handle)))
    assert made() == 42
    assert len(calls) == 2
    assert "belongs to another user" in caplog.text


def owned_by(user, found):
    return os.stat_result((*found[:4], user, *found[5:]))


def foreign(folder, monkeypatch):
    folder.mkdir(mode=0o700)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)


def open_to_the_group(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o770)


def open_to_all(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o707)


def a_file(folder, monkeypatch):
    folder.write_text("")


def below_a_file(folder, monkeypatch):
    folder.write_text("")
    monkeypatch.setenv("OPTIMPLUG_CACHE", str(folder / "cache"))


def without_a_home(folder, monkeypatch):
    monkeypatch.delenv("OPTIMPLUG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


FOLDERS = [
    *(foreign, open_to_the_group, open_to_all, a_file, below_a_file, without_a_home),
]


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_a_folder_that_is_not_the_users_own_is_told_of_once_and_not_used(
    make, folder, calls, monkeypatch, caplog
):
    make(folder, monkeypatch)
    assert made() == 42
    assert made() == 42
    assert len(calls) == 2
    assert not list(folder.parent.rglob("*.so"))
    assert len(caplog.records) == 1
    assert "let OPTIMPLUG_CACHE name a folder that is yours alone" in caplog.text


def test_a_folder_may_stand_behind_a_link(folder, calls, monkeypatch):
    disk = folder.parent / "disk"
    disk.mkdir()
    folder.symlink_to(disk)
    made()
    made()
    assert len(calls) == 1
    assert kernel(disk)


def test_an_empty_name_keeps_nothing(folder, calls, monkeypatch, caplog):
    monkeypatch.setenv("OPTIMPLUG_CACHE", "")
    made()
    made()
    assert len(calls) == 2
    assert not folder.exists()
    assert not caplog.records


@pytest.mark.parametrize(
    ("named", "expected"), [("", "home/.cache"), ("x", "home/.cache"), (1, "xdg")]
)
def test_it_is_in_the_users_cache_folder(folder, tmp_path, monkeypatch, named, expected):
    monkeypatch.delenv("OPTIMPLUG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg") if named == 1 else named)
    assert kernel_cache.cache_folder() == tmp_path / expected / "optimplug"


def test_a_write_that_is_cut_short_leaves_nothing_to_load(folder, calls, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        made()
    assert not list(folder.glob("*.so"))
    monkeypatch.undo()
    monkeypatch.setenv("OPTIMPLUG_CACHE", str(folder))
    assert made() == 42


def test_what_a_dead_process_has_begun_is_cleared_away(folder):
    place = kernel_cache.Kernel(folder, "0" * 64)
    folder.mkdir(mode=0o700)
    (folder / f".{place.key}-abc").write_bytes(b"half")
    place.keep(b"whole")
    assert [file.name for file in folder.iterdir()] == [f"{place.key}.so"]


def test_a_full_disk_is_told_of_and_the_kernel_serves(folder, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert made() == 42
    assert "cannot be kept" in caplog.text
    assert [file.suffix for file in folder.iterdir()] == [".lock"]


def test_two_writers_leave_one_whole_kernel(folder):
    folder.mkdir(mode=0o700)
    place = kernel_cache.Kernel(folder, "0" * 64)
    parts = [bytes([i]) * 200_000 for i in range(2)]

    def write(content):
        for _ in range(20):
            place.keep(content)

    writers = [threading.Thread(target=write, args=(content,)) for content in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert place._read() in parts


PROGRAM = """
import sys, torch
from optimplug.optim import AdamW
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
print("ready", flush=True)
sys.stdin.readline()
AdamW([p]).step()
"""


@pytest.mark.slow
def test_eight_processes_at_once_compile_once(folder, tmp_path):
    log = tmp_path / "log"
    command = tmp_path / "cc"
    command.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo x >> {log}\nexec cc "$@"\n')
    command.chmod(0o700)
    env = {**os.environ, "CC": str(command), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        for _ in range(8)
    ]
    for rank in ranks:
        assert rank.stdout.readline() == b"ready\n"
    for rank in ranks:
        rank.stdin.write(b"\n")
        rank.stdin.flush()
    for rank in ranks:
        rank.communicate()
    assert [rank.returncode for rank in ranks] == [0] * 8
    assert log.read_text() == "x\n"


def sleeping(tmp_path, monkeypatch, condition="true"):
    """A compiler that leaves behind a process that sleeps, and holds what it writes to."""
    command = tmp_path / "cc"
    command.write_text(
        f'#!/bin/sh\nif {condition}; then sleep 600 & echo $! > "{tmp_path}/left"; wait; fi\n'
    )
    command.chmod(0o700)
    monkeypatch.setenv("CC", str(command))
    monkeypatch.setattr(compiler, "TIME_OUT", 0.2)
    return tmp_path / "left"


def ends(process):
    """Wait for a process that is none of ours to end; tell whether it has."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("condition", ["true", '[ "$1" != --version ]'])
def test_a_compiler_that_sleeps_is_given_up_once_with_all_that_it_has_started(
    condition, cached, tmp_path, monkeypatch
):
    if not cached:
        monkeypatch.setenv("OPTIMPLUG_CACHE", "")
    left = sleeping(tmp_path, monkeypatch, condition)
    with pytest.warns(RuntimeWarning, match=r"given up after 0\.2 seconds") as told:
        ours = descend(AdamW(parameters(), max_grad_norm=1.0), 3)
    assert len(told) == 1
    assert compiler.compiler() is None
    assert ends(int(left.read_text()))
    theirs = descend(AdamW(parameters(), max_grad_norm=1.0, foreach=False), 3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_who_waits_for_another_process_waits_no_longer_than_for_a_compiler(folder, monkeypatch):
    command = compiler.compiler()
    monkeypatch.setattr(compiler, "TIME_OUT", 2.0)
    place = kernel_cache.Kernel(kernel_cache.cache_folder(), compiler._key(command, SOURCE))
    monkeypatch.setattr(compiler, "TIME_OUT", 0.05)
    with place.alone(0), pytest.warns(RuntimeWarning, match="given up after 0.05 seconds"):
        assert compiler.compile_library(SOURCE) is None


def test_without_locks_it_is_made_all_the_same(folder, monkeypatch, calls):
    def fail(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    assert made() == 42
    assert made() == 42
    assert len(calls) == 1
