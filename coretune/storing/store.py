"""Signals on disk that outlive a killed pass and are never taken for another model's, data's or setting's.

    FOLDER/loss.npy …             row i is example i; np.load(path, mmap_mode="r") reads it
    FOLDER/coretune-store.jsonl   the manifest: what the store is of, and a line for each committed block
    FOLDER/lock                   held while the store is open: by one that writes, or by any that read

A block is some rows of every signal. Its bytes reach the disk (fsync) before its line, which carries their
checksums, is added to the manifest and reaches the disk in turn. So where there is a line the bytes are
whole, and a kill costs the block at work. Blocks are measured whole, in the same grouping wherever a pass
was cut: if `measure` is a function of its rows alone, the arrays do not depend on the cuts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from coretune import locks
from coretune.files import FULL, PART, free_bytes, open_in_place, sync_folder
from coretune.storing.fingerprint import bytes_of, checksum
from coretune.storing.manifest import MANIFEST, Manifest, StoreError, array_path
from coretune.types import Array, Measure, Rows

LOCK = "lock"
BLOCK = 512  # [choice] rows in a block: seconds to a minute of measuring, which is what a kill may cost

logger = logging.getLogger(__name__)


class Store:
    """An open store. Use it in a `with` block, or `close` it: until then others are kept from writing.

    Opened by one process at a time while blocks are missing, by any number once it is finished.
    """

    def __init__(self, folder: Path, manifest: Manifest, lock: int) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def open(
        cls,
        folder: str | Path,
        fingerprint: Mapping[str, str],
        rows: int,
        signals: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
        block: int = BLOCK,
    ) -> Store:
        """Begin the store in `folder`, go on with it, or reuse it; `store_folder` names the folder.

        fingerprint  part -> text, all that decides the content (see docs/store.md)
        signals      name -> (shape of one row, dtype)
        block        rows in a block of a new store; an existing one keeps its own

        Every committed byte is read and compared with its checksum; damaged blocks are logged and are missing
        again. Raises StoreError when the folder holds something else, or a store of another fingerprint or
        layout (each differing part with both values), or when another process has it open (naming that one),
        or when the disk has not the room.
        """
        folder = Path(folder)
        layout = {
            name: (tuple(map(int, shape)), np.dtype(dtype).str) for name, (shape, dtype) in signals.items()
        }
        wanted = Manifest(dict(fingerprint), int(rows), int(block), layout)
        if folder.is_symlink():
            raise StoreError(f"{folder} is a link, which others may have put there: remove it")
        if (folder / MANIFEST).exists() and Manifest.read(folder).finished:
            store = cls._locked(folder, wanted, locks.SHARED)
            if store.finished and not store.verify():
                locks.sign(store._lock)
                return store
            store.close()  # only who is alone with it may mend it
        store = cls._locked(folder, wanted, locks.EXCLUSIVE)
        try:
            store._mend()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _locked(cls, folder: Path, wanted: Manifest, how: int) -> Store:
        if (others := foreign(folder)) and not (folder / MANIFEST).exists():
            raise StoreError(f"{folder} is no store, but holds {others[0]}: give an empty or a new folder")
        lock = acquire(folder, how)
        try:
            if how == locks.EXCLUSIVE and not (folder / MANIFEST).exists():
                _begin(folder, wanted)
            manifest = Manifest.read(folder)
            if different := manifest.differences(wanted):
                raise StoreError(
                    f"the store {folder} is of something else: {'; '.join(different)}. Take another folder, "
                    f"or remove this one with `coretune cache rm {folder}`"
                )
        except BaseException:
            locks.release(lock)
            raise
        return cls(folder, manifest, lock)

    @property
    def finished(self) -> bool:
        return self.manifest.finished

    def missing(self) -> list[int]:
        """Blocks still to measure, in order."""
        return self.manifest.missing

    def rows_of(self, block: int) -> Rows:
        """The rows of a block, ascending."""
        return np.array(self.manifest.rows_of(block), np.int64)

    def write(self, block: int, values: Mapping[str, Array]) -> None:
        """Commit a missing block: all of the store's signals, array row r describing `rows_of(block)[r]`.

        Nothing is converted: shape and dtype must be the store's own. NaN is content as any other. Raises
        StoreError when they are not, or when the disk is full; then this block is missing as before, the
        committed ones stay, and the store can go on at once or later.
        """
        self._check(block, values)
        manifest = self.manifest
        with _room_for(manifest, block, self.folder):
            sums = {}
            for name, array in values.items():
                data = bytes_of(array)
                sums[name] = checksum(data)
                _write_at(array_path(self.folder, name), manifest.offset(name, block), data)
            self._commit(block, sums)
        if self.finished:
            locks.share(self._lock)

    def read(self, name: str) -> Array:
        """(rows, …) memory map of a signal, read-only. Raises StoreError while blocks are missing."""
        if name not in self.manifest.signals:
            raise StoreError(f"the store has no signal {name!r}; it has {sorted(self.manifest.signals)}")
        if missing := self.missing():
            blocks = f"{len(missing)} of {self.manifest.blocks} blocks"
            raise StoreError(f"{blocks} of {self.folder} are missing: measure them first")
        array: Array = np.load(array_path(self.folder, name), mmap_mode="r")
        return array

    def verify(self) -> list[int]:
        """Committed blocks whose bytes are not those committed; opening the store again takes them back."""
        return self.manifest.damaged(self.folder)

    def close(self) -> None:
        """Let go of the lock; memory maps stay readable."""
        if self._lock >= 0:
            locks.release(self._lock)
            self._lock = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend(self) -> None:
        """Take back damaged blocks, drop unreadable lines, restore files: then all that is listed is true."""
        manifest = self.manifest
        if manifest.unreadable:
            logger.warning(
                "%s: %d lines of the manifest cannot be read; what they committed is measured again",
                self.folder,
                manifest.unreadable,
            )
        damaged = self.verify()
        for block in damaged:
            rows = manifest.rows_of(block)
            place = f"block {block} (rows {rows[0]} to {rows[-1]})"
            logger.warning("%s: %s is damaged and is measured again", self.folder, place)
            del manifest.commits[block]
        if damaged or manifest.unreadable:
            manifest.write(self.folder)
        for name in manifest.signals:
            _restore(array_path(self.folder, name), manifest.header(name), manifest.array_bytes(name))
        sync_folder(self.folder)
        if self.finished:
            locks.share(self._lock)

    def _check(self, block: int, values: Mapping[str, Array]) -> None:
        signals = self.manifest.signals
        if self._lock < 0:
            raise StoreError(f"the store {self.folder} is closed: open it again to write block {block}")
        if block in self.manifest.commits or block not in range(self.manifest.blocks):
            raise StoreError(f"block {block} is not among the missing {self.missing()} of {self.folder}")
        if values.keys() != signals.keys():
            raise StoreError(f"the store holds {sorted(signals)}, but was given {sorted(values)}")
        for name, (shape, dtype) in signals.items():
            expected = (len(self.manifest.rows_of(block)), *shape)
            if values[name].shape != expected or values[name].dtype != np.dtype(dtype):
                raise StoreError(
                    f"block {block} of {name!r} is {expected} of {np.dtype(dtype)} in the store, but was "
                    f"given as {values[name].shape} of {values[name].dtype}: convert it before"
                )

    def _commit(self, block: int, sums: Mapping[str, str]) -> None:
        path = self.folder / MANIFEST
        end = path.stat().st_size
        try:
            _write_at(path, end, self.manifest.line(block, sums))
        except BaseException:
            os.truncate(path, end)  # a torn line would swallow the next one
            raise
        self.manifest.commits[block] = sums


def fill(store: Store, measure: Measure) -> None:
    """Measure the blocks that are missing, and commit each as soon as it is there."""
    for block in store.missing():
        store.write(block, measure(store.rows_of(block)))


def foreign(folder: Path, own: Iterable[str] = ()) -> list[str]:
    """Names in the folder that are no store's, and not among `own`; none when there is no folder."""
    known = {LOCK, MANIFEST, MANIFEST + PART, *own}
    return sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []


def acquire(folder: Path, how: int) -> int:
    """Descriptor that holds the store's lock (`locks.py`); StoreError names who opened it last."""
    try:
        return locks.acquire(folder / LOCK, how)
    except locks.Held as held:
        raise StoreError(f"the store {folder} is in use, last opened by {held}: wait for it") from None


def _begin(folder: Path, manifest: Manifest) -> None:
    """The manifest comes first, so that a folder with arrays and no manifest is none of ours."""
    needed, free = sum(map(manifest.array_bytes, manifest.signals)), free_bytes(folder)
    if needed > free:
        raise StoreError(
            f"the store {folder} needs {needed:,} bytes, {free:,} are free: make room or take another folder"
        )
    manifest.write(folder)


def _restore(path: Path, header: bytes, size: int) -> None:
    """Give the file its header and its size; what is there stays, what is not is a hole."""
    with open(open_in_place(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        if file.read(len(header)) == header and os.fstat(file.fileno()).st_size == size:
            return
        file.seek(0)
        file.write(header)
        file.truncate(size)
        os.fsync(file.fileno())


def _write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    # Not through a memory map: there a full disk is a signal that ends the process, here an OSError.
    with open(open_in_place(path, os.O_RDWR), "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _room_for(manifest: Manifest, block: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreError(
            f"disk full: block {block} of {folder} needs {manifest.block_bytes(block):,} bytes, "
            f"{free_bytes(folder):,} are free. The {len(manifest.commits)} of {manifest.blocks} "
            "blocks committed before are safe: make room and go on"
        ) from error
