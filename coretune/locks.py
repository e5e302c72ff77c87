"""A lock file held by one process, or by several that only read; who holds it is written in it.

The lock is the operating system's (flock): it goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from coretune.files import open_in_place

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX
NOTE_BYTES = 256  # of the lock file: of one length, so that a full disk has room for the next note
_held: set[int] = set()


class Held(Exception):
    """Another process holds the lock; the message says which, as far as is known."""


def acquire(path: Path, how: int) -> int:
    """Descriptor that holds the lock file as SHARED or EXCLUSIVE until `release`. Never waits; raises Held.

    A link at `path` is not followed: OSError.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_in_place(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(path)):
                    break
        except BlockingIOError:
            holder = os.pread(lock, NOTE_BYTES, 0).decode(errors="replace").strip()
            os.close(lock)
            raise Held(holder or "another process") from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # the file was removed between the two calls
    _held.add(lock)
    if how == EXCLUSIVE:
        try:
            sign(lock)
        except OSError as error:
            release(lock)
            error.filename = str(path)
            raise
    return lock


def sign(lock: int) -> None:
    """Write into the lock file who holds it."""
    os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}".encode().ljust(NOTE_BYTES), 0)


def share(lock: int) -> None:
    """From now on others may hold it too, to read."""
    fcntl.flock(lock, SHARED)


def release(lock: int) -> None:
    """Let go of a lock that this process holds."""
    if lock in _held:  # not in a process that was forked since
        _held.remove(lock)
        os.close(lock)  # no LOCK_UN, which would unlock for a forked process too


def _forget() -> None:
    """A forked process, as one that loads batches, must not hold on to what its dead parent held."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
