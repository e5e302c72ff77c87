"""What decides the content of a store, as text: files and folders by their content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np

from coretune.types import Array


def checksum(data: bytes | memoryview) -> str:
    """Hex of 128 bits of blake2b."""
    return blake2b(data, digest_size=16).hexdigest()


def bytes_of(array: Array) -> memoryview:
    """The array's bytes in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def store_folder(cache: str | Path, fingerprint: Mapping[str, str]) -> Path:
    """The folder in `cache` of the store with that fingerprint: its name is the hash of all parts."""
    return Path(cache) / checksum(json.dumps(dict(fingerprint), sort_keys=True).encode())


def fingerprint_of_file(path: str | Path) -> str:
    """Hex of a file's content. Size and date would not do: both survive a change of weights."""
    digest = blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_of_folder(folder: str | Path, pattern: str = "*") -> str:
    """Hex of the names and contents of the files in a folder and below that match, as "*.safetensors"."""
    root = Path(folder)
    files = [path for path in root.rglob(pattern) if path.is_file()]
    if not files:
        raise ValueError(f"{root} holds no file {pattern!r} to take a fingerprint of")
    parts = sorted((path.relative_to(root).as_posix(), fingerprint_of_file(path)) for path in files)
    return checksum(json.dumps(parts).encode())


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """The parts of two fingerprints that differ, each with both values."""
    return [
        f"{part} is {there.get(part, 'not given')} there and {here.get(part, 'not given')} here"
        for part in {**there, **here}
        if there.get(part) != here.get(part)
    ]
