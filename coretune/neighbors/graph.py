"""The k-NN graph over the pool: build it, mend it where rows moved, read copies off it.

    embedding ─► cells ─► rows meet ─► the k nearest, and SPARE in reserve     build    (cells, near_lists)
    drifted rows ─► out of all lists ─► meet others, are offered in return     repair

Cosine is the inner product of unit rows. A row of zeros has no direction: it lists none, none lists it.
"""

from __future__ import annotations

import numpy as np

from coretune.neighbors import cells
from coretune.neighbors.cells import Cells, meet
from coretune.neighbors.near_lists import ABSENT, offer_pairs, products, union, without
from coretune.types import Advance, Array, NeighborGraph, Reserve, Rows

Csr = tuple[Array, Array, Array]  # indptr (n+1,) int64, indices (e,) int32, similarity (e,) float32 > 0
#: Rows kept behind the k of a list: so many neighbours may be lost until a row has to be searched for again.
SPARE = 6
#: Rows read at once, so that a memory-mapped pool is never copied whole.
BLOCK = 8192
#: Two cosines closer than this are a tie (float32 sums of a few hundred products).
TIE = 1e-5


def check_k(k: int, n: int) -> None:
    """ValueError unless 1 <= k < n: a row is never its own neighbour."""
    if k < 1:
        raise ValueError(f"k = {k} neighbours: k must be at least 1")
    if n < 2:
        raise ValueError(
            f"the pool has {n} row, and this method compares rows with one another: give it 2 or more"
        )
    if k >= n:
        raise ValueError(f"k = {k} neighbours, but the pool has {n} rows: set k to at most {n - 1}")


def build(embedding: Array, k: int, *, seed: int, progress: Advance | None = None) -> NeighborGraph:
    """The k nearest rows of every row, and SPARE more in reserve.

    embedding  (n, d) float32, rows unit or all zero, may be memory-mapped; kept as `built_from`, not copied
    seed       of the k-means behind the cells; unused while the search is exact

    Exact up to cells.EXACT_ROWS rows, by cells above: ask `recall`. Lists are sorted by falling cosine, ties
    by lowest row. Where fewer than k other rows have a direction, lists end in -1.
    Raises ValueError for k >= n and for a row that is neither unit nor zero, or not finite.
    """
    embedding = np.ascontiguousarray(embedding, np.float32)
    check_k(k, len(embedding))
    everyone = np.arange(len(embedding), dtype=np.int64)
    directed = _with_direction(embedding, everyone)
    parts = cells.cut(embedding, directed, k, seed)
    lists = _Lists.none(len(embedding), k)
    lists.search(embedding, directed, parts, progress)
    return lists.graph(k, parts, embedding)


def repair(
    graph: NeighborGraph,
    embedding: Array,
    drifted_rows: Rows,
    *,
    seed: int = 0,
    progress: Advance | None = None,
) -> NeighborGraph:
    """The graph after some rows drifted. Searched are those rows, and rows whose reserve is used up.

    The others' lists change only where a drifted row leaves or enters. Leaving, the next in reserve takes its
    place. Entering is seen from the drifted row's own search: whoever it meets is offered it in return, and
    whoever listed it before is offered it anew.

    Up to cells.EXACT_ROWS rows every list is the one that an exact query of its row gives, up to ties, as far
    as the n − m others stand where their lists were made. Above, that holds among the rows that the cells let
    meet, and the cells stay those of the last build. A list's `reach` is what makes it certain: who is not
    kept is no nearer than that, so k who are nearer are the k nearest; a row left with fewer is searched for.

    With half the pool drifted, or more, or without a reserve, all lists are made anew.
    `built_from` changes for the drifted rows only, so that small moves of the others go on adding up.
    """
    if len(drifted_rows) == 0:
        return graph
    if graph.reserve is None or 2 * len(drifted_rows) >= graph.n:
        return build(embedding, graph.k, seed=seed, progress=progress)
    embedding = np.ascontiguousarray(embedding, np.float32)
    drifted_rows = np.sort(np.asarray(drifted_rows, np.int64))
    moved = np.zeros(graph.n, bool)
    moved[drifted_rows] = True
    parts = Cells(graph.reserve.centroids, int(graph.reserve.probes))
    lists = _Lists.of(graph, graph.reserve)
    whose, who = without(lists.found, lists.cosine, moved)
    lists.forget(drifted_rows)
    lists.search(embedding, _with_direction(embedding, drifted_rows), parts, progress, skip=moved)
    lists.offer_again(embedding, whose, who, moved)
    short = lists.short_of(graph.k)
    lists.forget(short, at_home=True)
    lists.search(embedding, short, parts, None)
    built_from = np.array(graph.built_from, np.float16)
    built_from[drifted_rows] = embedding[drifted_rows]
    return lists.graph(graph.k, parts, built_from)


class _Lists:
    """Lists of all rows while they are made or mended: the k listed and the reserve as one, in place."""

    def __init__(self, found: Array, cosine: Array, reach: Array, home: Array) -> None:
        self.found, self.cosine, self.reach, self.home = found, cosine, reach, home

    @classmethod
    def none(cls, n: int, k: int) -> _Lists:
        width = k + SPARE
        reach = np.full(n, ABSENT, np.float32)
        home = np.full(n, -1, np.int32)
        return cls(np.full((n, width), -1, np.int32), np.full((n, width), ABSENT, np.float32), reach, home)

    @classmethod
    def of(cls, graph: NeighborGraph, reserve: Reserve) -> _Lists:
        found = np.concatenate([graph.neighbors, reserve.neighbors], axis=1)
        cosine = np.concatenate([graph.similarity, reserve.similarity], axis=1)
        cosine[found < 0] = ABSENT
        return cls(found, cosine, reserve.reach.copy(), reserve.home.copy())

    def forget(self, rows: Rows, at_home: bool = False) -> None:
        """Empty lists; they leave their cells too, unless they stay at home."""
        self.found[rows], self.cosine[rows], self.reach[rows] = -1, ABSENT, ABSENT
        if not at_home:
            self.home[rows] = -1

    def search(
        self,
        embedding: Array,
        rows: Rows,
        parts: Cells,
        progress: Advance | None,
        skip: Array | None = None,
    ) -> None:
        """Lists for `rows`. With skip (n,) bool the rows they meet, but those, are offered them in return."""
        if len(rows) == 0:
            return
        asked = parts.nearest(embedding, rows, parts.probes)
        self.home[rows] = asked[:, 0]
        back = None if skip is None else (self.found, self.cosine, self.reach, skip)
        found, cosine = meet(embedding, rows, asked, self.home, self.found.shape[1], back, progress)
        self.found[rows], self.cosine[rows] = found, cosine
        self.reach[rows] = cosine[:, -1]

    def offer_again(self, embedding: Array, whose: Array, who: Array, skip: Array) -> None:
        """Offer the rows `who` to the lists they were in."""
        there = ~skip[whose] & (self.home[who] >= 0)
        whose, who = whose[there], who[there]
        offer_pairs(products(embedding, whose, who), who, whose, self.found, self.cosine, self.reach)

    def short_of(self, k: int) -> Rows:
        """Rows with a direction that list fewer than k, and not because there are no more."""
        directed = int((self.home >= 0).sum())
        wanted = min(k, directed - 1)
        if wanted < 1:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self.home >= 0) & (self.found[:, wanted - 1] < 0)).astype(np.int64)

    def graph(self, k: int, parts: Cells, built_from: Array) -> NeighborGraph:
        similarity = np.clip(self.cosine, -1, 1, out=self.cosine)
        similarity[self.found < 0] = 0
        reserve = Reserve(
            np.ascontiguousarray(self.found[:, k:]),
            np.ascontiguousarray(similarity[:, k:]),
            self.reach,
            parts.centroids,
            self.home,
            np.asarray(parts.probes, np.int32),
        )
        neighbors = np.ascontiguousarray(self.found[:, :k])
        return NeighborGraph(neighbors, np.ascontiguousarray(similarity[:, :k]), built_from, reserve)


def recall(graph: NeighborGraph, embedding: Array, rng: np.random.Generator, sample: int = 1000) -> float:
    """Share of true nearest neighbours in the lists, on `sample` rows searched exactly; NaN without any."""
    embedding = np.ascontiguousarray(embedding, np.float32)
    directed = _with_direction(embedding, np.arange(graph.n))
    rows = np.sort(rng.choice(directed, min(sample, len(directed)), replace=False))
    truth = cells.exact_neighbours(embedding, directed, rows, graph.k)
    return edge_recall(graph.neighbors[rows], truth, embedding, rows)


def edge_recall(neighbors: Array, true_neighbors: Array, embedding: Array, rows: Rows) -> float:
    """Share of the true edges of `rows` that are found, a tie being as good; NaN without any.

    neighbors, true_neighbors  (m, k) int32  lists of `rows`, -1 where there is none
    embedding                  (n, d)        unit rows; where both are judged
    """
    wanted = (true_neighbors >= 0).sum(axis=1)
    truth = _cosines(embedding, rows, true_neighbors)
    farthest = np.where(true_neighbors >= 0, truth, np.inf).min(axis=1)  # (m,)
    near = (_cosines(embedding, rows, neighbors) >= farthest[:, None] - TIE).sum(axis=1)
    return float(np.minimum(near, wanted).sum() / wanted.sum()) if wanted.any() else float("nan")


def symmetric_csr(graph: NeighborGraph) -> Csr:
    """The union of both directions.

    The edge i–j is there when either lists the other; when both do, the larger cosine counts. Cosines are
    clipped at 0, and an edge of weight 0 is left out. Indices rise within a row.
    """
    return union(graph.neighbors, graph.similarity)


def near_copies(graph: NeighborGraph, threshold: float = 0.999) -> Array:
    """(n,) int32: the lowest row of each row's group; a row without copies is its own group.

    Groups are the connected components along edges of cosine >= threshold: a chain of copies is one group.
    """
    from scipy.sparse import csr_matrix  # late: a mistake in a config is reported without it
    from scipy.sparse.csgraph import connected_components

    tight = (graph.neighbors >= 0) & (graph.similarity >= threshold)
    start = np.nonzero(tight)[0]
    edges = csr_matrix((np.ones(len(start), np.int8), (start, graph.neighbors[tight])), (graph.n,) * 2)
    _, label = connected_components(edges, directed=False)
    _, lowest = np.unique(label, return_index=True)
    return lowest[label].astype(np.int32)


def drifted(graph: NeighborGraph, embedding: Array, delta: float, rows: Rows | None = None) -> Rows:
    """Rows with 1 − cos(z, built_from) > δ: those whose list was made too far from where they are now.

    rows  where it is known that no other row moved since the last call: only these are read
    """
    rows = np.arange(graph.n) if rows is None else rows
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), BLOCK):
        at = rows[start : start + BLOCK]
        now, before = embedding[at], graph.built_from[at].astype(np.float32)
        moved = 1 - np.einsum("ij,ij->i", now, before) > delta
        # Two rows of zeros are at the same place although their product is 0.
        found.append(at[moved & (now.any(axis=1) | before.any(axis=1))])
    return np.concatenate(found).astype(np.int64)


def _cosines(embedding: Array, rows: Rows, others: Array) -> Array:
    """(m, c) float32 cosines of each row with its c others; −inf beside a -1."""
    cosine = np.empty(others.shape, np.float32)
    step = max(1, 8 * BLOCK // max(1, others.shape[1]))
    for start in range(0, len(rows), step):
        stop = start + step
        own = embedding[rows[start:stop]][:, :, None]  # (b, d, 1)
        cosine[start:stop] = (embedding[others[start:stop]] @ own)[:, :, 0]
    return np.where(others >= 0, cosine, np.float32(-np.inf))


def _with_direction(embedding: Array, rows: Rows) -> Rows:
    """Those of `rows` that are not all zero; ValueError names the first that is not of length 1."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), BLOCK):
        at = rows[start : start + BLOCK]
        block = embedding[at]
        length = np.sqrt(np.einsum("ij,ij->i", block, block))
        wrong = ~((np.abs(length - 1) <= 1e-3) | (length == 0))
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"embedding row {at[first]} has length {length[first]:.4g}, not 1 "
                "(0 for a row without signal): normalise the embedding"
            )
        found.append(at[length > 0])
    return np.concatenate(found).astype(np.int64)
