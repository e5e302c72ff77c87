"""Equal rows: the same tokens and labels. The model gives the same signals for them: one is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from coretune.types import Array, Measure, Rows

BLOCK = 4096  # rows whose tokens are held at once
DIGEST = 16  # bytes

Read = Callable[[Rows], Sequence[Array]]


def digests(n: int, contents: Callable[[Rows], Iterable[bytes]]) -> Array:
    """(n,) bytes of each row's content: 128 bits, so no two rows are mixed up.

    contents  of some rows
    """
    found = np.empty(n, f"S{DIGEST + 1}")
    for begin in range(0, n, BLOCK):
        block = np.arange(begin, min(n, begin + BLOCK), dtype=np.int64)
        # numpy takes zeros off the end of a text
        found[block] = [blake2b(one, digest_size=DIGEST).digest() + b"." for one in contents(block)]
    return found


def row_digests(n: int, tokens: Read, labels: Read) -> Array:
    """(n,) bytes of each row's tokens and labels."""
    return digests(
        n,
        lambda block: (
            np.stack([ids, wanted]).astype("<i8").tobytes()
            for ids, wanted in zip(tokens(block), labels(block), strict=True)
        ),
    )


def lowest_equal(keys: Array) -> Rows:
    """(n,) int64: for each column of the keys (…, n) the first that is equal to it."""
    _, lowest, of = np.unique(keys, axis=-1, return_index=True, return_inverse=True)
    return lowest[of.reshape(-1)].astype(np.int64)


@dataclass(frozen=True)
class ExactDuplicates:
    """Which rows of a pool are equal.

    first  (n,) int64  the lowest row that is equal to each; a row without an equal is its own
    """

    first: Rows

    @classmethod
    def of(cls, n: int, tokens: Read, labels: Read) -> ExactDuplicates:
        """By a digest of each row's tokens and labels.

        n               rows in the pool
        tokens, labels  of some rows, as in `PoolRows`
        """
        return cls(lowest_equal(row_digests(n, tokens, labels)))

    def within(self, block: int) -> ExactDuplicates:
        """Equal rows of the same block of so many rows; those of different blocks count as different."""
        return ExactDuplicates(lowest_equal(np.stack([self.first, np.arange(len(self.first)) // block])))

    def together(self, rows: Rows) -> Rows:
        """These rows and all that are equal to one of them, rising."""
        return np.flatnonzero(np.isin(self.first, self.first[rows])).astype(np.int64)

    def distinct(self, rows: Rows) -> Rows:
        """Of each group of equal rows among these the one that comes first, in the order given."""
        return rows[np.sort(self._places(rows)[0])]

    def sharing(self, measure: Measure) -> Measure:
        """The measurement of one row of each group of equals, whose signals all of them get."""

        def shared(rows: Rows) -> Mapping[str, Array]:
            rows = np.asarray(rows, np.int64)
            places, of = self._places(rows)
            if len(places) == len(rows):
                return measure(rows)
            order = np.argsort(places)
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            return {name: value[rank[of]] for name, value in measure(rows[places[order]]).items()}

        return shared

    def for_all(self, rows: Rows, found: Mapping[str, Array]) -> tuple[Rows, dict[str, Array]]:
        """What was found of some rows, for them and their equals; of two that are equal the first counts."""
        everyone, order = self.together(rows), np.argsort(self.first[rows], kind="stable")
        at = order[np.searchsorted(self.first[rows], self.first[everyone], sorter=order)]
        return everyone, {name: value[at] for name, value in found.items()}

    def _places(self, rows: Rows) -> tuple[Rows, Rows]:
        """Where each group's first row stands in `rows`, and (m,) the group of each of them."""
        _, places, of = np.unique(self.first[rows], return_index=True, return_inverse=True)
        return places.astype(np.int64), of.reshape(-1).astype(np.int64)
