"""Files that appear whole or not at all, wherever their writer is killed or the disk is full.

    with atomic_write(path) as file:        # a file beside it, path.part, is swapped in at the end
        file.write(data)
    write_text(path, text)
    write_json(path, value)

All files that coretune writes by itself are written here, but for the arrays of a store (`storing/store.py`)
and what the stock libraries write into a folder (`writing`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from coretune.escaping import first_line

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT)
#: A new file of our own: nothing that lies there, a planted link least of all, is written through.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once the block is left without an error.

    Its bytes reach the disk before its name does. Folders above it are made. What a killed process left at
    the same place is removed first; an error leaves nothing behind.

    Raises OSError naming `path`: of a full disk with what was to be written, and when another process begins
    to write the same file meanwhile.
    """
    target = Path(path)
    beside = target.with_name(target.name + PART)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside.unlink(missing_ok=True)
    written = 0
    try:
        with open(os.open(beside, _NEW, 0o666), "w+b") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                _refuse_another_writer(file, beside, target)
            except BaseException:
                written = os.fstat(file.fileno()).st_size
                with contextlib.suppress(OSError):
                    _remove(file, beside)
                raise
        os.replace(beside, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(target, f"more than {written:,} bytes") from error
        if error.filename is None and error.errno is not None:  # a failed write does not say of what
            error.filename = str(target)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file that appears whole."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> None:
    """Write a JSON file that appears whole."""
    write_text(path, json.dumps(value, indent=indent))


def open_in_place(path: str | os.PathLike[str], how: int) -> int:
    """Descriptor of a plain file that is read, or changed where it lies; how: flags as os.O_RDWR.

    OSError for a link, which others could have put into a shared folder to have another file written, and
    for a pipe or a device, which would never answer.
    """
    flags = how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_plain(path) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _not_plain(path)
    return descriptor


def _not_plain(path: str | os.PathLike[str]) -> OSError:
    return OSError(f"{os.fspath(path)} is a link, a pipe or a device, which nobody here made: remove it")


def read_json(path: str | os.PathLike[str], remedy: str = "remove it and start again") -> Any:
    """ValueError names the file where it is cut or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read, it is damaged ({error}): {remedy}") from None


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str], needed: int | None, remedy: str) -> Iterator[None]:
    """Around what other libraries write into a folder: of a failed write they name no file, or break off with
    errors of their own, and of a full disk nobody says what was needed. OSError in one line with the path,
    the bytes needed where they are known, and those that are free.

    Only what says that a file could not be written is taken for that; all else passes.
    """
    try:
        yield
    except Exception as error:
        if not _failed_write(error):
            raise
        path = Path(getattr(error, "filename", None) or folder)
        if _full(error) or (needed is not None and free_bytes(folder) < needed):
            need = "more room" if needed is None else f"about {needed:,} bytes"
            raise disk_full(path, need, remedy) from error
        raise OSError(f"{path} cannot be written ({first_line(error)}): {remedy}") from error


def disk_full(path: Path, needed: str, remedy: str = "make room and go on") -> OSError:
    """One line; `errno` is that of a full disk."""
    error = OSError(f"disk full: {path} needs {needed}, {free_bytes(path):,} are free: {remedy}")
    error.errno = errno.ENOSPC
    return error


def free_bytes(path: str | os.PathLike[str]) -> int:
    """On the disk that holds the path, or the nearest folder above it that is there."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def sync_folder(folder: Path) -> None:
    """Names made or replaced in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed_write(error: Exception) -> bool:
    """Whether it is of a write, and does not say all that is to be known already."""
    if isinstance(error, OSError):
        return error.strerror is not None and (error.filename is None or error.errno in FULL)
    # torch 2.13: where a write fails, where the archive is closed after it, where a file breaks off; and Rust
    words = ("PytorchStreamWriter", "inline_container", "iostream error", "(os error ")
    return (
        _full(error) or type(error).__name__ == "SafetensorError" or any(word in str(error) for word in words)
    )


def _full(error: Exception) -> bool:
    """Rust's and C's libraries say it in words."""
    return (
        getattr(error, "errno", None) in FULL or "os error 28" in str(error) or "No space left" in str(error)
    )


def _refuse_another_writer(file: BinaryIO, beside: Path, target: Path) -> None:
    if not _is_ours(file, beside):
        raise OSError(f"{target} is being written by another process at the same time: let it finish")


def _remove(file: BinaryIO, beside: Path) -> None:
    if _is_ours(file, beside):
        beside.unlink()


def _is_ours(file: BinaryIO, beside: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(beside))
    except FileNotFoundError:
        return False
