"""The k-NN graph over the pool: build it, mend it where rows moved, read copies off it (FAISS underneath).

Cosine is the inner product of unit rows. A row of zeros has no direction: it lists none, none lists it.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
from numba import njit
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from coretune.types import Array, NeighborGraph, Rows

#: A pool of up to so many rows is always searched exactly (13 s for 50,000 rows of d = 256 on one core) …
EXACT_ROWS = 50_000
#: … and a larger one where so few (query, row) pairs are asked for that filling inverted lists costs more.
EXACT_PAIRS = 500_000_000
#: Inverted lists probed per query are doubled until a sample reaches this recall, or until MAX_PROBES.
PROBE_RECALL = 0.97
MAX_PROBES = 128
#: Rows looked at in one go, so that a memory-mapped pool is never copied whole.
BLOCK = 8192
#: Two cosines closer than this are a tie (float32 sums of a few hundred products).
TIE = 1e-5


def check_k(k: int, n: int) -> None:
    """ValueError unless 1 <= k < n: a row is never its own neighbour."""
    if k < 1:
        raise ValueError(f"k = {k} neighbours: k must be at least 1")
    if k >= n:
        raise ValueError(f"k = {k} neighbours, but the pool has {n} rows: set k to at most {n - 1}")


def build(embedding: Array, k: int, *, seed: int) -> NeighborGraph:
    """The k nearest rows of every row.

    embedding  (n, d) float32, rows unit or all zero, may be memory-mapped; kept as `built_from`, not copied
    seed       of the k-means behind the inverted lists; unused while the search is exact

    Exact up to EXACT_ROWS rows, by inverted lists above: ask `recall`. Lists are sorted by falling cosine,
    ties by lowest row; *which* of the rows tied at the far end get in is FAISS's choice, the same at every
    call. Where fewer than k other rows have a direction, lists end in -1.
    Raises ValueError for k >= n and for a row that is neither unit nor zero, or not finite.
    """
    embedding = np.ascontiguousarray(embedding, np.float32)
    n = embedding.shape[0]
    check_k(k, n)
    directed = _rows_with_direction(embedding)
    neighbors = np.full((n, k), -1, np.int32)
    similarity = np.zeros((n, k), np.float32)
    neighbors[directed], similarity[directed] = _lists(embedding, directed, directed, k, seed)
    return NeighborGraph(neighbors, similarity, embedding)


def recall(graph: NeighborGraph, embedding: Array, rng: np.random.Generator, sample: int = 1000) -> float:
    """Share of true nearest neighbours in the lists, on `sample` rows searched exactly; NaN without any."""
    embedding = np.ascontiguousarray(embedding, np.float32)
    directed = _rows_with_direction(embedding)
    rows = np.sort(rng.choice(directed, min(sample, len(directed)), replace=False))
    similarity, position = _exact(_take(embedding, directed), embedding[rows], graph.k + 1)
    truth, _ = _without_self(directed, position, similarity, rows, graph.k)
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


def symmetric_csr(graph: NeighborGraph) -> tuple[Array, Array, Array]:
    """The union of both directions: `(indptr (n+1,) int64, indices (e,) int32, similarity (e,) float32)`.

    The edge i–j is there when either lists the other; when both do, the larger cosine counts. Cosines are
    clipped at 0, and an edge of weight 0 is left out. Indices rise within a row.
    """
    listed = graph.neighbors >= 0
    indptr = np.concatenate([[0], np.cumsum(listed.sum(axis=1))])
    weight = np.maximum(graph.similarity[listed], 0).astype(np.float32)
    directed = sparse.csr_matrix((weight, graph.neighbors[listed], indptr), shape=(graph.n, graph.n))
    union = directed.maximum(directed.T.tocsr())
    union.sort_indices()
    return union.indptr.astype(np.int64), union.indices.astype(np.int32), union.data


def near_copies(graph: NeighborGraph, threshold: float = 0.999) -> Array:
    """(n,) int32: the lowest row of each row's group; a row without copies is its own group.

    Groups are the connected components along edges of cosine >= threshold: a chain of copies is one group.
    """
    tight = (graph.neighbors >= 0) & (graph.similarity >= threshold)
    start = np.nonzero(tight)[0]
    edges = sparse.csr_matrix((np.ones(len(start), np.int8), (start, graph.neighbors[tight])), (graph.n,) * 2)
    _, label = connected_components(edges, directed=False)
    _, lowest = np.unique(label, return_index=True)
    return lowest[label].astype(np.int32)


def drifted(graph: NeighborGraph, embedding: Array, delta: float) -> Rows:
    """Rows with 1 − cos(z, built_from) > δ: those whose list was made too far from where they are now."""
    found = []
    for start, block in _blocks(embedding):
        before = graph.built_from[start : start + len(block)]
        moved = 1 - np.einsum("ij,ij->i", block, before, dtype=np.float32) > delta
        # Two rows of zeros are at the same place although their product is 0.
        found.append(start + np.flatnonzero(moved & (block.any(axis=1) | before.any(axis=1))))
    return np.concatenate(found).astype(np.int64)


def repair(graph: NeighborGraph, embedding: Array, drifted_rows: Rows, *, seed: int = 0) -> NeighborGraph:
    """New lists for the drifted rows, and every other row's list patched for them. Costs ~2 m/n of a build.

    Exact up to EXACT_ROWS rows, as far as the n − m other rows stand where their lists were made:
    - a drifted row has the very list a rebuild gives it (up to ties);
    - every edge v → drifted row of a rebuild is there;
    - v's whole list is a rebuild's if v listed no drifted row, or if its farthest neighbour is now no
      farther than before (nothing unlisted can be nearer than that).
    Not exact: a row that lost a neighbour and ends with a farther one. Its gap is filled from its neighbours'
    neighbours in the old graph [choice: they hold 98 % of what a search would find, at a seventh of its
    time], so it may miss a row and hold a farther one. Above EXACT_ROWS the inverted lists' recall applies.

    With half the pool drifted, or more, all lists are made anew: cheaper, and exact for every row.
    `built_from` changes for the drifted rows only, so that small moves of patched rows go on adding up.
    """
    if len(drifted_rows) == 0:
        return graph
    if 2 * len(drifted_rows) >= graph.n:
        return build(embedding, graph.k, seed=seed)
    embedding = np.ascontiguousarray(embedding, np.float32)
    directed = _rows_with_direction(embedding)
    moved = np.zeros(graph.n, bool)
    moved[drifted_rows] = True
    drifted_directed, others = directed[moved[directed]], directed[~moved[directed]]

    neighbors, similarity = graph.neighbors.copy(), graph.similarity.copy()
    neighbors[moved], similarity[moved] = -1, 0
    neighbors[drifted_directed], similarity[drifted_directed] = _lists(
        embedding, drifted_directed, directed, graph.k, seed
    )
    for rows, found, cosine in _patches(graph, embedding, moved, drifted_directed, others, seed):
        neighbors[rows], similarity[rows] = _nearest(found, cosine, graph.k)
    short = directed[neighbors[directed, min(graph.k, len(directed) - 1) - 1] < 0]  # too few two steps away
    neighbors[short], similarity[short] = _lists(embedding, short, directed, graph.k, seed)
    built_from = np.array(graph.built_from)
    built_from[moved] = embedding[moved]
    return NeighborGraph(neighbors, similarity, built_from)


def _patches(
    graph: NeighborGraph, embedding: Array, moved: Array, drifted_directed: Rows, others: Rows, seed: int
) -> Iterator[tuple[Rows, Array, Array]]:
    """Blocks of undrifted rows to patch: rows, the (b, 2k) candidates of each, -1 for none, their cosines."""
    newcomer, nearness = _lists(embedding, others, drifted_directed, graph.k, seed)  # (n − m, k) both
    nearness = np.where(newcomer >= 0, nearness, np.float32(-np.inf))
    listed, farthest = graph.neighbors[others], graph.similarity[others, -1]
    bereft = np.any((listed >= 0) & moved[listed], axis=1)
    gains = (newcomer[:, 0] >= 0) & ((listed[:, -1] < 0) | (nearness[:, 0] > farthest))
    indptr, indices, _ = symmetric_csr(graph)
    for at in _slices(np.flatnonzero(bereft | gains)):
        kept, cosine = listed[at], _cosines(embedding, others[at], listed[at])
        lost = bereft[at]
        kept[lost], cosine[lost] = _two_steps(embedding, indptr, indices, moved, others[at[lost]], kept[lost])
        yield (
            others[at],
            np.concatenate([kept, newcomer[at]], axis=1),
            np.concatenate([cosine, nearness[at]], axis=1),
        )


@njit(cache=True)
def _two_steps(
    embedding: Array, indptr: Array, indices: Array, moved: Array, rows: Rows, listed: Array
) -> tuple[Array, Array]:
    """The k nearest undrifted among the (m, k) listed, the neighbours and theirs, -1 for none; cosines."""
    found = np.full(listed.shape, -1, np.int32)
    cosine = np.full(listed.shape, -np.inf, np.float32)
    seen_from = np.full(len(embedding), -1, np.int64)
    for i, v in enumerate(rows):
        seen_from[v] = v
        for w in listed[i]:  # among them those of cosine < 0, which are no edges of the symmetric graph
            if w >= 0:
                seen_from[w] = v
                if not moved[w]:
                    _insert(found[i], cosine[i], w, _dot(embedding[v], embedding[w]))
        for u in indices[indptr[v] : indptr[v + 1]]:
            for e in range(indptr[u] - 1, indptr[u + 1]):
                w = u if e < indptr[u] else indices[e]
                if seen_from[w] == v:
                    continue
                seen_from[w] = v
                if not moved[w]:
                    _insert(found[i], cosine[i], w, _dot(embedding[v], embedding[w]))
    return found, cosine


@njit(cache=True, fastmath=True)
def _dot(a: Array, b: Array) -> np.float32:
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(cache=True)
def _insert(found: Array, cosine: Array, row: int, value: np.float32) -> None:
    """Put the row into a list kept in falling order, if it is nearer than the last."""
    at = len(found) - 1
    if value <= cosine[at]:
        return
    while at > 0 and cosine[at - 1] < value:
        found[at], cosine[at] = found[at - 1], cosine[at - 1]
        at -= 1
    found[at], cosine[at] = row, value


def _lists(embedding: Array, rows: Rows, among: Rows, k: int, seed: int) -> tuple[Array, Array]:
    """For each of `rows` its k nearest in `among`, itself left out: (m, k) int32, (m, k) float32 cosines."""
    neighbors, similarity = np.full((len(rows), k), -1, np.int32), np.zeros((len(rows), k), np.float32)
    if len(among) == 0:
        return neighbors, similarity
    for at, cosine, position in _search(_take(embedding, among), embedding, rows, k + 1, seed):
        neighbors[at], similarity[at] = _without_self(among, position, cosine, rows[at], k)
    return neighbors, similarity


def _without_self(among: Rows, position: Array, similarity: Array, rows: Rows, k: int) -> tuple[Array, Array]:
    """Drop each row from its own k + 1 results, or the last where copies crowded it out of them."""
    found = np.where(position >= 0, among[position], -1)
    unfit = (found < 0) | (found == rows[:, None])
    return _nearest(np.where(unfit, -1, found), np.where(unfit, -np.inf, similarity), k)


def _nearest(found: Array, similarity: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row, ties by lowest row; -1 entries come in with −inf and leave with 0."""
    best = np.lexsort((found, -similarity), axis=-1)[:, :k]
    found = np.take_along_axis(found, best, axis=1).astype(np.int32)
    similarity = np.take_along_axis(similarity, best, axis=1).astype(np.float32)
    return found, np.where(found >= 0, np.clip(similarity, -1, 1), np.float32(0))


def _search(
    base: Array, embedding: Array, rows: Rows, k: int, seed: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Blocks: positions in `rows`; (b, k) cosines and positions in `base` of the nearest, -1 if fewer."""
    if len(embedding) <= EXACT_ROWS or len(base) * len(rows) <= EXACT_PAIRS:
        for at in _slices(np.arange(len(rows))):
            yield at, *_exact(base, embedding[rows[at]], k)
        return
    index = _inverted_lists(base, embedding, rows, k, seed)
    home = [index.quantizer.search(embedding[rows[at]], 1)[1][:, 0] for at in _slices(np.arange(len(rows)))]
    # Queries of one cell together find its list still in the cache: 40 % less time than in pool order.
    for at in _slices(np.argsort(np.concatenate(home), kind="stable")):
        yield at, *index.search(embedding[rows[at]], k)


def _exact(base: Array, queries: Array, k: int) -> tuple[Array, Array]:
    similarity, position = faiss.knn(queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, position


def _inverted_lists(base: Array, embedding: Array, rows: Rows, k: int, seed: int) -> faiss.IndexIVFFlat:
    """k-means cells of the base rows, with as many probed per query as a sample of 200 queries needs.

    4·√m cells for m queries balance the work of filling the cells against that of scanning them [choice].
    Not HNSW [choice]: its insertion order depends on the threads, so two runs would differ.
    """
    cells = int(np.clip(2 ** round(np.log2(4 * np.sqrt(len(rows)))), 1, max(1, len(base) // 39)))
    dimension = base.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.spherical = seed, 6, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 8, 32
    index.train(base)
    index.add(base)

    rng = np.random.default_rng(seed)
    sample = embedding[np.sort(rng.choice(rows, min(200, len(rows)), replace=False))]
    farthest = _exact(base, sample, k)[0][:, -1:]
    for probes in (4, 8, 16, 32, 64, MAX_PROBES):
        index.nprobe = min(probes, cells)
        if (index.search(sample, k)[0] >= farthest - TIE).mean() >= PROBE_RECALL:
            break
    return index


def _cosines(embedding: Array, rows: Rows, others: Array) -> Array:
    """(m, c) float32 cosines of each row with its c others; −inf beside a -1."""
    cosine = np.empty(others.shape, np.float32)
    step = max(1, 8 * BLOCK // max(1, others.shape[1]))
    for start in range(0, len(rows), step):
        stop = start + step
        own = embedding[rows[start:stop]][:, :, None]  # (b, d, 1)
        cosine[start:stop] = (embedding[others[start:stop]] @ own)[:, :, 0]
    return np.where(others >= 0, cosine, np.float32(-np.inf))


def _rows_with_direction(embedding: Array) -> Rows:
    """Rows that are not all zero; ValueError names the first that is not of length 1."""
    found = []
    for start, block in _blocks(embedding):
        length = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float32))
        wrong = ~((np.abs(length - 1) <= 1e-3) | (length == 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"embedding row {start + row} has length {length[row]:.4g}, not 1 "
                "(0 for a row without signal): normalise the embedding"
            )
        found.append(start + np.flatnonzero(length > 0))
    return np.concatenate(found).astype(np.int64)


def _take(embedding: Array, rows: Rows) -> Array:
    """embedding[rows]; the array itself, not a copy, when that is every row."""
    return embedding if len(rows) == len(embedding) else embedding[rows]


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    for start in range(0, len(array), BLOCK):
        yield start, array[start : start + BLOCK]


def _slices(positions: Array) -> Iterator[Array]:
    for start in range(0, len(positions), BLOCK):
        yield positions[start : start + BLOCK]
