"""How a worker gets its rows of a feature array: from the file behind a memory map, or from Ray's store."""

from __future__ import annotations

import mmap
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np

from coretune.types import Array

#: Rows of a mapped array that are compared with the file before workers read it.
COMPARED = 256


@dataclass(frozen=True)
class Mapped:
    """A whole .npy or raw file behind a memory map: every worker maps it for itself, nothing is sent."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @staticmethod
    def of(features: Array) -> Mapped | None:
        """None where `features` is no memory map of a file as it is: an array, or a part of a map."""
        if not isinstance(features, np.memmap) or not features.flags.c_contiguous:
            return None
        whole: Any = features.base  # a part's base is the map it is a part of
        if not isinstance(whole, mmap.mmap) or features.filename is None:
            return None
        found = Mapped(str(features.filename), features.dtype.str, features.shape, int(features.offset))
        # A private map may have been written to, and the file may have been replaced.
        some = np.linspace(0, len(features) - 1, min(COMPARED, len(features))).astype(np.int64)
        return found if found.open()[some].tobytes() == features[some].tobytes() else None

    def open(self) -> Array:
        """ValueError names the host that cannot read the file."""
        try:
            return np.memmap(self.path, np.dtype(self.dtype), "r", self.offset, self.shape)
        except OSError as error:
            raise ValueError(
                f"{socket.gethostname()} cannot read {self.path} ({error.strerror}): put signals_dir where "
                "all nodes of the cluster see it"
            ) from None
