"""One run at a time writes into an output_dir: RUN/_coretune/lock, there while one does."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coretune import locks
from coretune.files import FULL, disk_full
from coretune.recording.run_files import OWN

LOCK = f"{OWN}/lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_ours: set[Path] = set()
log = logging.getLogger("coretune")


@contextmanager
def run_lock(output_dir: str | os.PathLike[str], first: bool = True) -> Iterator[None]:
    """Inside, no other process may write a run into the folder. A block within a block is of the same run.

    first  whether this process is the one that writes; others of the same run hold nothing

    ValueError names the process that holds it. Leaves no folder behind that was made for the lock alone.
    """
    path = Path(output_dir).resolve() / LOCK
    if not first or path in _ours:
        yield
        return
    made = [folder for folder in path.parents if not folder.exists()]
    lock = _acquired(path, output_dir)
    _ours.add(path)
    try:
        yield
    finally:
        _ours.remove(path)
        path.unlink(missing_ok=True)
        if lock is not None:
            locks.release(lock)
        with suppress(OSError):  # something was written
            for folder in made:
                folder.rmdir()


def _acquired(path: Path, output_dir: str | os.PathLike[str]) -> int | None:
    try:
        return locks.acquire(path, locks.EXCLUSIVE)
    except locks.Held as held:
        raise ValueError(
            f"{os.fspath(output_dir)} is in use by {held}: wait until that run ends, stop it, or give "
            "another output_dir"
        ) from None
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path, "a few bytes") from None
        if error.errno is not None and error.errno not in NO_LOCKS:
            raise OSError(
                f"output_dir {os.fspath(output_dir)} cannot be written to ({error.strerror}: "
                f"{error.filename}): give another one"
            ) from None
        if error.errno is None:
            raise
        log.warning("%s: this file system has no locks, so a second run into it is not noticed", output_dir)
        return None
