"""Sparse composite distances: each row's nearest in every space; whatever is not listed stands at c_i.

    d'_ij = d_ij                         where j is among the k nearest of i in some space, or is i
          = c_i                          elsewhere
    c_i   = ½ (Σ_s mix_s r^s_i + Σ_s mix_s μ^s_i)

with r^s_i the distance of i's farthest listed neighbour in space s, below which nothing unlisted can be, and
μ^s_i its mean distance to all rows [choice: with c_i = r alone the first picks cover nothing but their own
neighbours, with the largest distance instead covering counts for more than nearness; of these three the mean
of r and μ came nearest to the exact greedy on every pool tried]. Which rows are listed does not depend on the
mix, and neither do their distances: a new mix only adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from coretune.select.spaces import Space, listed, nearest_picks, own_picks, sweep
from coretune.types import Array, Rows

#: Rows whose true neighbours are computed to know the recall of lists from reduced spaces.
RECALL_ROWS = 64


@dataclass(frozen=True)
class CompositeGraph:
    """Distances of the listed pairs in every space, ordered by candidate.

    indptr  (n+1,)  int64    candidate j can cover rows[indptr[j] : indptr[j + 1]], itself among them
    rows    (e,)    int32    rising within a candidate
    far     (S, e)  float32  distance of row and candidate in each space
    reach   (S, n)  float32  r: no unlisted row is nearer in that space
    mean    (S, n)  float32  μ: mean distance to all rows
    recall  float            share of the true neighbours in the lists, on a sample; 1 for exact ones. Below 1
                             r may lie beyond an unlisted row
    """

    spaces: tuple[Space, ...]
    indptr: Array
    rows: Array
    far: Array
    reach: Array
    mean: Array
    recall: float

    @property
    def n(self) -> int:
        return len(self.indptr) - 1

    def mixed(self, mix: Array) -> GraphComposite:
        """The similarity c_i − d'_ij under a mix (S,)."""
        small = mix.astype(np.float32)
        cap = np.float32(0.5) * (small @ self.reach + small @ self.mean)
        similarity = np.maximum(cap[self.rows] - small @ self.far, np.float32(0.0))
        return GraphComposite(self.indptr, self.rows, similarity)

    def nearest(self, mixes: Array, chosen: Rows) -> tuple[Array, Array]:
        """(q, n) int64 position in `chosen` of the nearest pick under each mix, and (q, n) float32 how far.

        A listed pick no farther than any unlisted row can be is the nearest of all; rows without one are
        compared with every pick. Right for exact lists; else a row may be given a pick that is a little
        farther than its nearest, and the distance is still that pick's.
        """
        mixes = np.asarray(mixes, dtype=np.float32)
        position = np.full((len(mixes), self.n), -1, dtype=np.int64)
        best = np.full((len(mixes), self.n), np.inf, dtype=np.float32)
        _nearest_listed(self.indptr, self.rows, self.far, mixes, chosen, position, best)
        away = np.flatnonzero((best > mixes @ self.reach).any(axis=0))
        if len(away):
            position[:, away], best[:, away] = nearest_picks(self.spaces, mixes, chosen, away)
        own_picks(np.arange(self.n), chosen, position, best)
        return position, best


@dataclass(frozen=True)
class GraphComposite:
    """A `Similarity` along listed pairs; 0 to whatever is not listed.

    indptr, rows  as in CompositeGraph
    similarity    (e,) float32  >= 0
    """

    indptr: Array
    rows: Array
    similarity: Array

    @property
    def n(self) -> int:
        return len(self.indptr) - 1

    @property
    def width(self) -> int:
        return 4

    @property
    def rounding(self) -> float:
        return 0.0

    def gains(self, best: Array, demand: Array, rows: Rows) -> Array:
        return _gains(self.indptr, self.rows, self.similarity, best, demand, rows)

    def cover(self, best: Array, demand: Array, row: int) -> float:
        return float(_cover(self.indptr, self.rows, self.similarity, best, demand, row))

    def nearest(self, chosen: Rows) -> Array:
        nearest = np.full(self.n, -1, dtype=np.int64)
        best = np.zeros(self.n, dtype=np.float32)
        _most_similar(self.indptr, self.rows, self.similarity, chosen, nearest, best)
        nearest[chosen] = np.arange(len(chosen))
        return nearest


def composite_graph(
    spaces: Sequence[Space],
    k: int,
    shrink: Callable[[Space], Space] | None = None,
    rng: np.random.Generator | None = None,
) -> CompositeGraph:
    """Lists of the k nearest in each space, or of all rows where there are fewer.

    shrink  makes the space in which neighbours are searched (`reduced`); left out: the space itself.
            Distances of listed pairs are always those of the space itself
    rng     with shrink: draws the rows on which the recall of its lists is measured
    """
    n = spaces[0].n
    k = min(k, n - 1)
    found = [nearest_lists(shrink(space) if shrink else space, k) for space in spaces]
    indptr, columns = _union(np.stack([neighbors for neighbors, _ in found]))
    far = np.stack([listed(space, indptr, columns) for space in spaces])
    reach = np.stack([_reach(indptr, columns, far[s], found[s][0]) for s in range(len(spaces))])
    order, by_candidate, rows = _by_candidate(indptr, columns)
    return CompositeGraph(
        spaces=tuple(spaces),
        indptr=by_candidate,
        rows=rows,
        far=np.ascontiguousarray(far[:, order]),
        reach=reach,
        mean=np.stack([mean for _, mean in found]),
        recall=1.0 if rng is None else _sampled_recall(spaces, [lists for lists, _ in found], rng),
    )


def nearest_lists(space: Space, k: int) -> tuple[Array, Array]:
    """(n, k) int32 the k nearest other rows, in no order, and (n,) float32 the mean distance to all.

    By comparing all pairs once, n² d multiplications and additions. Of rows tied for the last place the first
    seen, which are the lowest, get in.
    """
    neighbors = np.full((space.n, k), -1, dtype=np.int32)
    far = np.full((space.n, k), np.inf, dtype=np.float32)
    total = np.zeros(space.n)
    for rows, columns, found in sweep(space):
        _offer(found, rows.start, columns.start, neighbors, far, total)
    return neighbors, (total / max(1, space.n)).astype(np.float32)


def recall(space: Space, neighbors: Array, rows: Rows) -> float:
    """Share of the true nearest among the lists (m, k) of `rows` (m,); an equally near row is as good."""
    if neighbors.shape[1] == 0:
        return 1.0
    k = neighbors.shape[1]
    hits = 0
    for row, list_ in zip(rows, neighbors, strict=True):
        alone = np.zeros(space.n + 1, dtype=np.int64)
        alone[row + 1 :] = space.n
        far = listed(space, alone, np.arange(space.n))
        others = np.delete(far, row)
        farthest = np.partition(others, k - 1)[k - 1]
        hits += int((far[list_] <= farthest * np.float32(1.0 + 1e-5)).sum())
    return hits / (k * len(rows))


def _sampled_recall(spaces: Sequence[Space], lists: Sequence[Array], rng: np.random.Generator) -> float:
    rows = rng.choice(spaces[0].n, size=min(RECALL_ROWS, spaces[0].n), replace=False)
    return float(np.mean([recall(s, found[rows], rows) for s, found in zip(spaces, lists, strict=True)]))


def _union(neighbors: Array) -> tuple[Array, Array]:
    """Lists (S, n, k) -> indptr (n+1,) int64, columns (e,) int32: each row itself and all it lists, once."""
    everyone = np.arange(neighbors.shape[1], dtype=np.int32)[:, None]
    together = np.sort(np.concatenate([*neighbors, everyone], axis=1), axis=1)
    keep = np.ones(together.shape, dtype=bool)
    keep[:, 1:] = together[:, 1:] != together[:, :-1]
    indptr = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    return indptr, together[keep]


def _reach(indptr: Array, columns: Array, far: Array, neighbors: Array) -> Array:
    """(n,) float32 distance of each row's farthest neighbour in one space's lists (n, k)."""
    reach = np.zeros(len(neighbors), dtype=np.float32)
    _farthest(indptr, columns, far, np.sort(neighbors, axis=1), reach)
    return reach


def _by_candidate(indptr: Array, columns: Array) -> tuple[Array, Array, Array]:
    """The edges' order by candidate, then row; the candidates' indptr (n+1,) int64; the rows (e,) int32."""
    order = np.argsort(columns, kind="stable")
    start = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    count = np.bincount(columns, minlength=len(indptr) - 1)
    return order, np.concatenate([[0], np.cumsum(count)]).astype(np.int64), start[order]


@numba.njit(cache=True, nogil=True)
def _offer(
    found: Array, first_row: int, first_column: int, neighbors: Array, far: Array, total: Array
) -> None:
    """Show a block of distances to the lists of its rows, and, off the diagonal, to those of its columns."""
    mirrored = first_row != first_column
    for i in range(found.shape[0]):
        row = first_row + i
        for j in range(found.shape[1]):
            column = first_column + j
            distance = found[i, j]
            total[row] += distance
            if row != column and distance < far[row, 0]:
                _replace_root(far[row], neighbors[row], distance, column)
            if mirrored:
                total[column] += distance
                if distance < far[column, 0]:
                    _replace_root(far[column], neighbors[column], distance, row)


@numba.njit(cache=True, nogil=True)
def _replace_root(far: Array, rows: Array, distance: np.float32, row: int) -> None:
    """A heap with the farthest on top loses it and takes the row in."""
    hole, size = 0, far.shape[0]
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and far[child + 1] > far[child]:
            child += 1
        if far[child] <= distance:
            break
        far[hole], rows[hole] = far[child], rows[child]
        hole = child
    far[hole], rows[hole] = distance, row


@numba.njit(cache=True, nogil=True)
def _farthest(indptr: Array, columns: Array, far: Array, ordered: Array, reach: Array) -> None:
    """ordered (n, k), rising: which of a row's edges belong to this space's list. Edges rise as well."""
    for i in range(reach.shape[0]):
        at = 0
        for edge in range(indptr[i], indptr[i + 1]):
            while at < ordered.shape[1] and ordered[i, at] < columns[edge]:
                at += 1
            if at < ordered.shape[1] and ordered[i, at] == columns[edge]:
                reach[i] = max(reach[i], far[edge])


@numba.njit(cache=True, nogil=True)
def _gains(indptr: Array, rows: Array, similarity: Array, best: Array, demand: Array, asked: Array) -> Array:
    gains = np.empty(asked.shape[0], dtype=np.float64)
    for position in range(asked.shape[0]):
        total = 0.0
        for edge in range(indptr[asked[position]], indptr[asked[position] + 1]):
            v = rows[edge]
            total += demand[v] * np.float64(max(np.float32(0.0), similarity[edge] - best[v]))
        gains[position] = total
    return gains


@numba.njit(cache=True, nogil=True)
def _cover(indptr: Array, rows: Array, similarity: Array, best: Array, demand: Array, row: int) -> float:
    total = 0.0
    for edge in range(indptr[row], indptr[row + 1]):
        v = rows[edge]
        total += demand[v] * np.float64(max(np.float32(0.0), similarity[edge] - best[v]))
        best[v] = max(best[v], similarity[edge])
    return total


@numba.njit(cache=True, nogil=True)
def _most_similar(
    indptr: Array, rows: Array, similarity: Array, chosen: Array, nearest: Array, best: Array
) -> None:
    for position in range(chosen.shape[0]):
        for edge in range(indptr[chosen[position]], indptr[chosen[position] + 1]):
            if similarity[edge] > best[rows[edge]]:
                best[rows[edge]] = similarity[edge]
                nearest[rows[edge]] = position


@numba.njit(cache=True, nogil=True)
def _nearest_listed(
    indptr: Array, rows: Array, far: Array, mixes: Array, chosen: Array, position: Array, best: Array
) -> None:
    for pick in range(chosen.shape[0]):
        for edge in range(indptr[chosen[pick]], indptr[chosen[pick] + 1]):
            v = rows[edge]
            for q in range(mixes.shape[0]):
                distance = np.float32(0.0)
                for s in range(far.shape[0]):
                    distance += mixes[q, s] * far[s, edge]
                if distance < best[q, v]:
                    best[q, v] = distance
                    position[q, v] = pick
