"""Which rows of the coreset a round trains on, in which order, and how they are packed.

    coreset ─► endless shuffled passes ─► from the cursor on, what a round holds ─► rows, or packs of rows

The passes run on from round to round, so that no row is met twice before every other was met once, however
short a round is. Each is drawn from the seed, the selection and its own number alone, so that a resumed run
finds the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coretune.rounds.schedule import Schedule
from coretune.rounds.state import State
from coretune.types import Array, Rows

MEGABATCHES = 50  # at most so many batches are sorted by length together, as transformers does


@dataclass(frozen=True)
class Order:
    """The rows of one round, as its sampler hands them out.

    rows     (m,) int64 in training order
    ends     (items,) int64: item i, a row or a pack of rows, is rows[ends[i - 1]:ends[i]]
    skipped  the first so many items are of steps that were over before, and are not trained
    """

    rows: Rows
    ends: Array
    skipped: int = 0

    def of(self, first: int, last: int) -> Rows:
        """The rows of the items first … last - 1."""
        begin = self.ends[first - 1] if first else 0
        return self.rows[begin : self.ends[last - 1]] if last > first else self.rows[:0]

    def first(self, items: int) -> Order:
        """The order without what comes after so many items."""
        return Order(self.of(0, min(items, len(self.ends))), self.ends[:items], min(self.skipped, items))

    @property
    def trained(self) -> Rows:
        """The rows without those of the skipped items."""
        return self.of(self.skipped, len(self.ends))


def round_order(state: State, schedule: Schedule, seed: int) -> Order:
    """The state's round. Items of steps that the state says were over are filled with its first row."""
    skipped = state.skipped * schedule.batch
    stream = _stream(state, schedule, seed)
    items = schedule.items - skipped
    if schedule.pack:
        rows, sizes = fill(stream, state.pool.cost, items, schedule.pack)
    else:
        rows = np.fromiter(stream, np.int64, items)
        sizes = np.ones(items, np.int64)
    over = np.full(skipped, state.coreset.indices[0])
    sizes = np.concatenate([np.ones(skipped, np.int64), sizes])
    return Order(np.concatenate([over, rows]), np.cumsum(sizes), skipped)


def fill(stream: Iterator[int], cost: Array, packs: int, capacity: int) -> tuple[Rows, Array]:
    """The longest beginning of the stream that goes into `packs` packs, and the packs' sizes.

    [choice] Best fit as the rows come: each goes into the fullest pack that still has room for it. So a round
    takes a beginning of the stream and leaves the rest to the next, which a packing of sorted rows would not.

    cost      (n,) tokens of each pool row, none above `capacity`
    capacity  tokens a pack holds
    Returns the rows (m,) int64, pack after pack, and the number of rows (packs,) int64 in each.
    """
    content: list[list[int]] = [[] for _ in range(packs)]
    room = np.full(packs, capacity, np.int64)
    opened = 0
    for row in stream:
        need = cost[row]
        left = np.where(room[:opened] >= need, room[:opened], capacity + 1)
        best = int(np.argmin(left)) if opened else 0
        if not opened or left[best] > capacity:
            if opened == packs:
                break
            best, opened = opened, opened + 1
        content[best].append(row)
        room[best] -= need
    sizes = np.array([len(pack) for pack in content], np.int64)
    return np.array([row for pack in content for row in pack], np.int64), sizes


def _stream(state: State, schedule: Schedule, seed: int) -> Iterator[int]:
    """The coreset's passes from the state's cursor on."""
    size = len(state.coreset.indices)
    number, at = divmod(state.cursor, size)
    while True:
        yield from _pass(state, schedule, seed, number)[at:].tolist()
        number, at = number + 1, 0


def _pass(state: State, schedule: Schedule, seed: int, number: int) -> Rows:
    """(K,) the whole coreset in the order of its pass of that number."""
    draw = np.random.default_rng([seed, state.selected_in + 1, number, 1])
    rows: Rows = draw.permutation(state.coreset.indices)
    return by_length(rows, state.pool.cost, schedule.group) if schedule.group else rows


def by_length(rows: Rows, cost: Array, batch: int) -> Rows:
    """Rows of like length beside each other, as `group_by_length` of transformers has them.

    The shuffled rows are cut into pieces of at most MEGABATCHES batches, and fewer where there would not be
    four pieces; each is sorted, longest first; then the longest of all comes first, so that memory that does
    not suffice is known at once.
    """
    size = batch * max(1, min(len(rows) // (batch * 4), MEGABATCHES))
    pieces = [rows[at : at + size] for at in range(0, len(rows), size)]
    pieces = [piece[np.argsort(-cost[piece], kind="stable")] for piece in pieces]
    longest = int(np.argmax([cost[piece[0]] for piece in pieces]))
    ordered = np.concatenate(pieces)
    ordered[[0, longest * size]] = ordered[[longest * size, 0]]
    return ordered
