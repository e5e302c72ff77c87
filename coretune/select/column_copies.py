"""Copies among many columns, without comparing all pairs.

The same text gives the same column up to rounding, which depends on the batch it was measured in. Unit
columns are projected on a few random directions. Those that agree in all of them are exact copies; the
others are hashed to the cells of random grids, those that share a cell are compared, and they are copies
when their cosine reaches the threshold. Columns that differ by δ = ‖ã − ã'‖ fall into different cells of a
grid of width h with a probability of about 9.6 δ/h, and are missed when that happens in all three. With h
between 16 times the δ of the threshold and 1, depending on how far apart columns lie: less than 1 in 10,000
copies at a tenth of that δ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from coretune.select.columns import project_rows
from coretune.types import Array, Rows

GRIDS = 3
DIRECTIONS = 12  # per grid
BLOCK = 8192
LEADERS = 64  # distinct columns of a cell that the others in it are compared with


def copy_ranks(features: Array, norms: Array, cosine: float) -> Array:
    """(n,) int64: how many lower rows of its group a row has; 0 for the lowest of each group of copies.

    features  (n, D) float, memory-mapped or not; a row of norm 0 is nobody's copy
    norms     (n,) float64
    cosine    columns whose unit vectors have at least this cosine are copies; groups are joined by chains
    """
    n, width = features.shape
    rng = np.random.default_rng(width)  # a fixed hash, not a matter of a run's luck
    place = _projected(features, norms, rng.standard_normal((GRIDS * DIRECTIONS, width)))
    rows = np.flatnonzero(norms > 0.0)
    first, exact = np.unique(_hashed(place[rows, :4].view(np.int64)), return_index=True, return_inverse=True)[
        1:
    ]
    pairs = [np.stack([rows, rows[first][exact]], axis=1)]
    rows, place = np.sort(rows[first]), place.astype(np.float32)
    spread = float(place[rows, :DIRECTIONS].std(axis=0).mean()) if len(rows) else 1.0
    far = 2.0 * (1.0 - cosine) + 1e-12  # δ² of the threshold
    side = min(max(spread, 16.0 * np.sqrt(far)), 1.0)
    for grid in np.split(place, GRIDS, axis=1):
        cells = np.floor(grid[rows] / side + rng.random(DIRECTIONS)).astype(np.int64)
        for one, other in _near(place, rows, _hashed(cells), 4.0 * far):
            same = _cosines(features, norms, one, other) >= cosine
            pairs.append(np.stack([one[same], other[same]], axis=1))
    from scipy.sparse import coo_matrix  # late: a mistake in a config is reported without it
    from scipy.sparse.csgraph import connected_components

    joined = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(joined), dtype=np.int8), (joined[:, 0], joined[:, 1])), shape=(n, n))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")  # by group, rising rows within
    begin = np.searchsorted(group[order], group[order], side="left")
    ranks = np.empty(n, dtype=np.int64)
    ranks[order] = np.arange(n) - begin
    return ranks


def _projected(features: Array, norms: Array, directions: Array) -> Array:
    """(n, q) float64 of unit columns; exact copies agree to the last bit."""
    place = np.zeros((len(features), len(directions)))
    for start in range(0, len(features), BLOCK):
        part = slice(start, start + BLOCK)
        norm = norms[part, None]
        inner = project_rows(features[part], directions)
        np.divide(inner, norm, out=place[part], where=norm > 0.0)
    return place


def _hashed(numbers: Array) -> Array:
    """(m,) int64 hash of each row of (m, q) int64; sums wrap around."""
    odd = np.random.default_rng(1).integers(1, 2**62, size=numbers.shape[1]) | 1
    mixed = numbers ^ (numbers >> 31)
    found: Array = (mixed * odd).sum(axis=1)
    return found


def _near(place: Array, rows: Rows, cells: Array, far: float) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of a row and a lower one of its cell, both (m,), whose mean squared projections differ by <= far.

    rows (k,) with their cells (k,). The lowest row of each cell leads; those near it are settled, and of the
    rest again the lowest leads. Over 36 directions four times δ² is passed by a copy once in 10¹⁵.
    """
    order = np.lexsort((rows, cells))
    rows, cells = rows[order], cells[order]
    for _ in range(LEADERS):
        if len(rows) == 0:
            return
        begins = np.concatenate([[True], cells[1:] != cells[:-1]])
        leaders = rows[np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))]
        rows, cells, leaders = rows[~begins], cells[~begins], leaders[~begins]
        near = _distances(place, rows, leaders) <= far
        yield rows[near], leaders[near]
        rows, cells = rows[~near], cells[~near]


def _distances(place: Array, rows: Rows, others: Rows) -> Array:
    """(m,) float32 mean squared difference of the projections."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        found[part] = ((place[rows[part]] - place[others[part]]) ** 2).mean(axis=1)
    return found


def _cosines(features: Array, norms: Array, rows: Rows, others: Rows) -> Array:
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        one, other = (np.asarray(features[at[part]], dtype=np.float32) for at in (rows, others))
        cosines[part] = np.einsum("md,md->m", one, other, dtype=np.float64) / (
            norms[rows[part]] * norms[others[part]]
        )
    return cosines
