"""Compiled kernels on disk, so that another process, or the next run, compiles nothing.

The folder is the user's own, and nothing is loaded from it that somebody else could have written:
folder and file belong to the user of this process, nobody else may write to them, neither is a
link, and a file ends with a checksum of itself and of its name. It comes to its place whole, by
being renamed. Whatever does not fit is not loaded, but compiled again and replaced.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

__all__ = ["Kernel", "cache_folder"]

_logger = logging.getLogger("optimplug")

_CHECKSUM = 32
"""The bytes at the end of a file. Whoever loads a library does not look behind its end."""


def cache_folder() -> Path | None:
    """Return where kernels are kept, made if it is not there; None for nowhere.

    ``OPTIMPLUG_CACHE`` names it, and is empty for none; else it is in the user's cache folder.
    """
    named = os.environ.get("OPTIMPLUG_CACHE")
    if named == "":
        return None
    try:
        # What is above it may well be a link, to a larger disk for one.
        folder = Path(named or _default_folder()).resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        problem = _problem(folder.lstat(), stat.S_ISDIR)
    except (OSError, RuntimeError) as error:  # pathlib's, where there is no home
        _tell(named, f"it cannot be made: {error}")
        return None
    if problem is not None:
        _tell(named, f"{folder} {problem}")
        return None
    return folder


def _default_folder() -> Path:
    there = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(there) if Path(there).is_absolute() else Path.home() / ".cache"
    return base / "optimplug"


@lru_cache  # once for each folder
def _tell(named: str | None, problem: str) -> None:
    _logger.warning(
        "compiled kernels are kept nowhere, and every process compiles them: %s; let "
        "OPTIMPLUG_CACHE name a folder that is yours alone%s, or be empty to say so",
        *(problem, " (chmod 700)" if named is not None else ""),
    )


@lru_cache  # it is looked at twice: before it is known that nobody else makes it, and after
def _tell_of_file(problem: str) -> None:
    _logger.warning("%s", problem)


class Kernel:
    """The place of one compiled library in the cache.

    Args:
        folder: the cache.
        key: all that the library depends on, as a name of letters and digits.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = folder / f"{key}.so"

    def load(self) -> ctypes.CDLL | None:
        """Return the library that is kept; None where there is none that may be loaded."""
        try:
            whole = self._read()
            return None if whole is None else ctypes.CDLL(str(self.path))
        except FileNotFoundError:
            return None
        except OSError as error:  # made where other libraries are, for one
            _tell_of_file(f"{self.path} is made again: {error}")
            return None

    def _read(self) -> bytes | None:
        """Return the bytes of the file, if they are what was written, by nobody else."""
        # Not through a link; and of what waits for a writer, it waits for none.
        handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            problem = _problem(os.fstat(handle), stat.S_ISREG)
            whole = file.read() if problem is None else b""
        content, checksum = whole[:-_CHECKSUM], whole[-_CHECKSUM:]
        if problem is None and checksum != self._checksum(content):
            problem = "is damaged"
        if problem is not None:
            _tell_of_file(f"{self.path} {problem}, and is made again")
            return None
        return content

    def keep(self, content: bytes) -> None:
        """Put a library into its place, whole or not at all."""
        name = f".{self.key}-"
        for draft in self.path.parent.glob(f"{name}*"):
            draft.unlink(missing_ok=True)  # of a process that has died over it
        try:
            handle, written = tempfile.mkstemp(dir=self.path.parent, prefix=name)  # its owner's
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content + self._checksum(content))
                Path(written).replace(self.path)
            finally:
                Path(written).unlink(missing_ok=True)
        except OSError as error:  # the disk is full, say
            _tell_of_file(f"{self.path} cannot be kept: {error}")

    @contextmanager
    def alone(self, seconds: float) -> Iterator[None]:
        """Keep all other processes from making the same library meanwhile.

        Args:
            seconds: how long to wait for one that does.

        Raises:
            TimeoutError: it is still at it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path.with_suffix(".lock"), timeout=max(seconds, 0), mode=0o600)
        try:
            lock.acquire()
        except Timeout as error:
            raise TimeoutError(str(error)) from error
        except (OSError, NotImplementedError) as error:
            # Two that write at once do each other no harm: they only do the work twice.
            _logger.info("%s is made without a lock: %s", self.path, error)
        try:
            yield
        finally:
            lock.release()

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.sha256(self.key.encode() + content).digest()


def _problem(found: os.stat_result, is_right: Callable[[int], bool]) -> str | None:
    """Return why nothing may be loaded from there; None where it may."""
    if not is_right(found.st_mode):
        return "is not what it should be"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written to by others"
    return None
