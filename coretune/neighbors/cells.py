"""Nearest rows by cells: k-means cuts the pool, a row meets the rows of the cells nearest to it.

    centroids ─► the p cells nearest to each asking row ─► cell by cell: its rows × all that ask it

A cell and all who ask it are one matrix product, where inverted lists scan the cell for each of them in turn
(docs/scale.md has both). Up to EXACT_ROWS rows there is one cell that everybody asks: the search is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coretune.neighbors.near_lists import empty, grouped, offer, offer_back
from coretune.progress_reports import Reporter
from coretune.types import Advance, Array, Rows

#: A pool of up to so many rows is always searched exactly (13 s for 50,000 rows of d = 256 on one core).
EXACT_ROWS = 50_000
#: As many cells are asked per row as a sample of SAMPLE rows needs to find this share of its neighbours.
PROBE_RECALL = 0.97
MAX_PROBES = 128
SAMPLE = 300
#: Rows of the cells' side and of the asking side that are multiplied at once.
CELL_BLOCK, ASKING_BLOCK = 2048, 1024


@dataclass(frozen=True)
class Cells:
    """centroids (c, d) float32, c = 1 for one cell that holds all; probes: how many of them a row asks."""

    centroids: Array
    probes: int

    def nearest(self, embedding: Array, rows: Rows, count: int) -> Array:
        """(m, count) int32: the cells nearest to each of `rows`, nearest first."""
        if len(self.centroids) == 1:
            return np.zeros((len(rows), 1), np.int32)
        found = np.empty((len(rows), count), np.int32)
        for start in range(0, len(rows), 8192):
            block = embedding[rows[start : start + 8192]]
            found[start : start + 8192] = _knn(block, self.centroids, count)[1]
        return found


def cut(embedding: Array, directed: Rows, k: int, seed: int) -> Cells:
    """Cells for the directed rows, and how many of them to ask for k neighbours at PROBE_RECALL."""
    d = embedding.shape[1]
    if len(directed) <= EXACT_ROWS:
        return Cells(np.zeros((1, d), np.float32), 1)
    import faiss  # late: a mistake in a config is reported without it

    rng = np.random.default_rng(seed)
    count = int(2 ** round(np.log2(4 * np.sqrt(len(directed)))))  # filling cells and asking them cost alike
    learnt = np.sort(rng.choice(directed, min(len(directed), 32 * count), replace=False))
    means = faiss.Kmeans(d, count, niter=5, seed=seed, spherical=True, min_points_per_centroid=8)
    means.train(embedding[learnt])
    cells = Cells(np.ascontiguousarray(means.centroids, np.float32), 1)

    sample = np.sort(rng.choice(directed, min(SAMPLE, len(directed)), replace=False))
    true = exact_neighbours(embedding, directed, sample, k)  # (s, k)
    home = cells.nearest(embedding, true.ravel(), 1).reshape(true.shape)
    asked = cells.nearest(embedding, sample, min(MAX_PROBES, count))
    seen = (home[:, :, None] == asked[:, None, :]).sum(axis=(0, 1)).cumsum() / true.size  # by probes
    enough = np.flatnonzero(seen >= PROBE_RECALL)
    return Cells(cells.centroids, int(enough[0]) + 1 if len(enough) else len(seen))


def meet(
    embedding: Array,
    rows: Rows,
    asked: Array,
    home: Array,
    width: int,
    back: tuple[Array, Array, Array, Array] | None = None,
    progress: Advance | None = None,
) -> tuple[Array, Array]:
    """The `width` nearest of each of `rows`: (m, width) found and cosine (`near_lists.py`).

    asked  (m, p) int32  the cells each row asks      home  (n,) int32  the cell of every row, -1 for none
    back   (found, cosine, reach, skip) of all n rows: each of `rows` is offered to those it meets as well
    """
    cells = int(max(home.max(initial=0), asked.max(initial=0))) + 1
    held, members = grouped(home, cells)
    asking, positions = grouped(asked.ravel(), cells)
    positions //= asked.shape[1]
    found, cosine = empty(len(rows), width)
    tell = Reporter(progress, len(positions))
    for cell in range(cells):
        who = positions[asking[cell] : asking[cell + 1]]
        if len(who) == 0:
            continue
        inside = members[held[cell] : held[cell + 1]]
        for first in range(0, len(inside), CELL_BLOCK):
            others = inside[first : first + CELL_BLOCK]
            there = embedding[others].T
            for start in range(0, len(who), ASKING_BLOCK):
                at = who[start : start + ASKING_BLOCK]
                own = rows[at]
                scores = embedding[own] @ there  # (a, b)
                offer(scores, at, own, others, found, cosine)
                if back is not None:
                    offer_back(scores, own, others, back[3], *back[:3])
        tell(len(who))
    return found, cosine


def exact_neighbours(embedding: Array, directed: Rows, sample: Rows, k: int) -> Array:
    """(s, k) rows nearest to each row of the sample, itself left out."""
    found, cosine = empty(len(sample), k)
    queries, at = embedding[sample], np.arange(len(sample))
    for start in range(0, len(directed), 4096):
        others = directed[start : start + 4096]
        offer(queries @ embedding[others].T, at, sample, others, found, cosine)
    return found


def _knn(queries: Array, base: Array, count: int) -> tuple[Array, Array]:
    import faiss

    similarity, position = faiss.knn(queries, base, count, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, position
