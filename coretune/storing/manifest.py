"""What a store says of itself: the fingerprint and layout it was made under, and the blocks it has committed.

One JSON text a line: the head first, then a line for each committed block with a checksum of every signal's
bytes. A line that cannot be read takes its block back, never the store; without a head nothing can be said.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coretune.files import atomic_write, open_in_place
from coretune.storing.fingerprint import checksum, differences

MANIFEST = "coretune-store.jsonl"
FORMAT = 1
#: What has one meaning and one size on every machine; no objects, no text, no long double.
DTYPES = "?bBhHiIlLqQefdFD"


class StoreError(ValueError):
    """The store cannot be opened, read or written as asked; the message says why and what to do."""


def array_path(folder: Path, name: str) -> Path:
    """The file of a signal."""
    return folder / f"{name}.npy"


@dataclass(frozen=True)
class Manifest:
    """The layout of a store and what is committed of it.

    fingerprint  part -> text, all that decides the content
    rows         examples
    block        rows in a block; the last one may hold fewer
    signals      name -> (shape of one row, dtype as numpy writes it: "<f4")
    commits      block -> {signal: checksum of the block's bytes}
    unreadable   lines that could not be read
    """

    fingerprint: Mapping[str, str]
    rows: int
    block: int
    signals: Mapping[str, tuple[tuple[int, ...], str]]
    commits: dict[int, Mapping[str, str]] = field(default_factory=dict)
    unreadable: int = 0

    def __post_init__(self) -> None:
        """Raises StoreError for a layout that no store can have."""
        texts = [text for part in self.fingerprint.items() for text in part]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise StoreError(f"a fingerprint is one or more texts by name, not {dict(self.fingerprint)!r}")
        if self.rows < 1 or self.block < 1 or not self.signals:
            raise StoreError(
                f"a store needs 1 row, 1 row in a block and 1 signal or more; asked for {self.rows} rows, "
                f"{self.block} in a block, {len(self.signals)} signals"
            )
        for name, (shape, dtype) in self.signals.items():
            if not name.replace("_", "").isalnum() or min(shape, default=1) < 1:
                raise StoreError(f"signal {name!r} of {shape} a row: names are words, sizes 1 or more")
            if np.dtype(dtype).char not in DTYPES:
                raise StoreError(f"signal {name!r} is {np.dtype(dtype)}; a store holds plain numbers")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest as it is on disk; StoreError when its head is not there or cannot be read."""
        first, *lines = _bytes_of(folder / MANIFEST).splitlines(keepends=True) or [b""]
        head = _parsed(first)
        stated = head.pop("checksum", None)
        if head.get("format") != FORMAT or stated != checksum(json.dumps(head).encode()):
            raise StoreError(
                f"the first line of {folder / MANIFEST} is damaged or not of format {FORMAT}, so nobody can "
                f"say what the store is of: remove it with `coretune cache rm {folder}`"
            )
        signals = {name: (tuple(shape), dtype) for name, (shape, dtype) in head["signals"].items()}
        commits: dict[int, Mapping[str, str]] = {}
        blocks = -(-head["rows"] // head["block"])
        for line in lines:
            entry = _parsed(line)
            block, checksums = entry.get("block"), entry.get("checksums")
            if not isinstance(block, int) or not isinstance(checksums, dict):
                continue
            if block in range(blocks) and checksums.keys() == signals.keys():
                commits[block] = checksums
        unreadable = len(lines) - len(commits)
        return cls(head["fingerprint"], head["rows"], head["block"], signals, commits, unreadable)

    def write(self, folder: Path) -> None:
        """Put it on disk as a whole: at any kill the file is either the old one or the new one."""
        head: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": dict(self.fingerprint),
            "rows": self.rows,
            "block": self.block,
            "signals": self.signals,
        }
        head["checksum"] = checksum(json.dumps(head).encode())
        with atomic_write(folder / MANIFEST) as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.writelines(self.line(block, sums) for block, sums in sorted(self.commits.items()))

    @staticmethod
    def line(block: int, checksums: Mapping[str, str]) -> bytes:
        """What commits the block."""
        return json.dumps({"block": block, "checksums": checksums}).encode() + b"\n"

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block)

    @property
    def finished(self) -> bool:
        return len(self.commits) == self.blocks

    @property
    def missing(self) -> list[int]:
        return [block for block in range(self.blocks) if block not in self.commits]

    def rows_of(self, block: int) -> range:
        return range(block * self.block, min((block + 1) * self.block, self.rows))

    def row_bytes(self, name: str) -> int:
        shape, dtype = self.signals[name]
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize

    def block_bytes(self, block: int) -> int:
        return len(self.rows_of(block)) * sum(map(self.row_bytes, self.signals))

    def header(self, name: str) -> bytes:
        """The first bytes of the signal's file: .npy format 1.0.

        Written here, not by numpy, so that they are the same bytes under every version of it.
        """
        shape, dtype = self.signals[name]
        text = repr({"descr": dtype, "fortran_order": False, "shape": (self.rows, *shape)})
        text += " " * (-(10 + len(text) + 1) % 64) + "\n"  # data begin at a multiple of 64
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()

    def array_bytes(self, name: str) -> int:
        """Size of the signal's file."""
        return len(self.header(name)) + self.rows * self.row_bytes(name)

    def offset(self, name: str, block: int) -> int:
        """Where in the signal's file the block begins."""
        return len(self.header(name)) + block * self.block * self.row_bytes(name)

    def damaged(self, folder: Path) -> list[int]:
        """The committed blocks whose bytes are not those that were committed. Reads every byte of them."""
        found: set[int] = set()
        for name in self.signals:
            path, header = array_path(folder, name), self.header(name)
            if not path.is_file():
                found |= self.commits.keys()
                continue
            with open(open_in_place(path, os.O_RDONLY), "rb") as file:
                whole = file.read(len(header)) == header
                for block, checksums in self.commits.items():
                    file.seek(self.offset(name, block))
                    data = file.read(len(self.rows_of(block)) * self.row_bytes(name))
                    if not whole or checksum(data) != checksums[name]:
                        found.add(block)
        return sorted(found)

    def differences(self, other: Manifest) -> list[str]:
        """The parts in which `other` (here) differs from this (there), each with both values."""
        return differences(self._parts(), other._parts())

    def _parts(self) -> dict[str, str]:
        layout = {f"signal {name}": f"{shape} {dtype}" for name, (shape, dtype) in self.signals.items()}
        return {**self.fingerprint, "number of rows": f"{self.rows:,}", **layout}


def _bytes_of(path: Path) -> bytes:
    with open(open_in_place(path, os.O_RDONLY), "rb") as file:
        return file.read()


def _parsed(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; an empty one when the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return {}  # whole or not: the next line would be glued to it
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
