"""A store of a few rows, and damage to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretune.storing.store import Store, fill
from coretune.types import Array, Rows

PARTS = {"weights": "abc", "settings": '{"dimension": 4}'}


SIGNALS: dict[str, Any] = {"loss": ((), "<f4"), "gradient": ((4,), "<f2")}


ROWS, BLOCK = 23, 5


def measure(rows: Rows) -> Mapping[str, Array]:
    """A function of each row alone; every seventh row cannot be measured."""
    loss = np.where(rows % 7 == 3, np.nan, np.sin(rows)).astype(np.float32)
    return {"loss": loss, "gradient": np.outer(rows, np.arange(1, 5)).astype(np.float16)}


def opened(folder: Path, **changes: Any) -> Store:
    return Store.open(
        folder, **{"fingerprint": PARTS, "rows": ROWS, "signals": SIGNALS, "block": BLOCK, **changes}
    )


def filled(folder: Path) -> Path:
    with opened(folder) as store:
        fill(store, measure)
    return folder


def damage(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
