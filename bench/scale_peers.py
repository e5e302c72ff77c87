"""The cases of bench/scale.py that put the graph beside peers.

Peers are no dependency: `pip install hnswlib pynndescent`. Inverted lists double their probes, and HNSW its
ef, until 200 rows that are searched exactly have recall 0.97, as the cells do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import faiss
import numpy as np
from scale_graph import JUDGED, QUICK, WHAT, WIDTH, K, compiled, graph_line, prompts
from scale_row import CUT, PEER_LIMIT, Case, Line, best, within

from coretune.neighbors import cells, graph
from coretune.types import Array, NeighborGraph

#: FAISS's default: 200, hnswlib's, takes three times as long and finds 0.995 of 100,000 rows' neighbours.
EF_CONSTRUCTION = 40


def peers(quick: bool, n: int = 100_000, limit: float = PEER_LIMIT) -> list[Line]:
    """The others at one size; where they do not run, the error, and where they are ended, after how long."""
    compiled()
    n = QUICK[-1] if quick else n
    rows = prompts(n)
    ours = best(partial(graph.build, rows, K, seed=0))
    lines = [graph_line(ours, n, graph.recall(ours.result, rows, np.random.default_rng(1), JUDGED), ())]
    for package, what, call in PEERS:
        try:
            who = f"{package} {version(package)}{what}"
        except PackageNotFoundError:
            lines.append(Line(WHAT, package, n, note="not installed", fitted=False))
            continue
        them = within(limit, partial(_ready, call, n))
        note = f"{them.busy / ours.busy:.1f} × our processor time"
        if them.cut:
            figures = (them.seconds, them.busy, them.gib)
            lines.append(Line(WHAT, who, n, *figures, note=f"{CUT}, {note}", fitted=False))
            continue
        lists = NeighborGraph(them.result, np.zeros_like(them.result, np.float32), rows)
        found = graph.recall(lists, rows, np.random.default_rng(1), JUDGED)
        lines.append(replace(graph_line(them, n, found, (), who), note=note))
    return lines


def million_of_peers(quick: bool) -> list[Line]:
    """Nothing where it is to be quick: the same as at 100,000 rows."""
    return [] if quick else peers(quick, 1_000_000, limit=240.0)


def _ready(call: Callable[[Array], Array], n: int) -> Callable[[], Array]:
    """What is measured; what a peer compiles is not."""
    rows = prompts(n)
    call(rows[:2000])
    return partial(call, rows)


def _inverted(rows: Array) -> Array:
    """FAISS's inverted lists."""
    count = int(2 ** round(np.log2(4 * np.sqrt(len(rows)))))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, count, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.spherical = 6, True
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 8, 32
    index.train(rows)
    index.add(rows)
    for index.nprobe in (4, 8, 16, 32, 64, 128):
        if _enough(rows, lambda asked: index.search(asked, K + 1)[0]):
            break
    home = index.quantizer.search(rows, 1)[1][:, 0]
    found = np.empty((len(rows), K + 1), np.int64)
    for at in np.array_split(np.argsort(home, kind="stable"), max(1, len(rows) // 8192)):
        found[at] = index.search(rows[at], K + 1)[1]
    return _others(found)


def _hnsw(rows: Array) -> Array:
    """FAISS's HNSW."""
    index = faiss.IndexHNSWFlat(WIDTH, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(rows)
    for index.hnsw.efSearch in (32, 64, 128, 256):
        if _enough(rows, lambda asked: index.search(asked, K + 1)[0]):
            break
    return _others(index.search(rows, K + 1)[1])


def _hnswlib(rows: Array) -> Array:
    import hnswlib

    index = hnswlib.Index("ip", WIDTH)
    index.init_index(len(rows), ef_construction=EF_CONSTRUCTION, M=16, random_seed=0)
    index.set_num_threads(_threads())
    index.add_items(rows)
    for ef in (32, 64, 128, 256):
        index.set_ef(ef)
        if _enough(rows, lambda asked: 1 - index.knn_query(asked, K + 1)[1]):
            break
    return _others(index.knn_query(rows, K + 1)[0].astype(np.int64))


def _enough(rows: Array, cosines: Callable[[Array], Array]) -> bool:
    """Does a search of some rows find enough of their K + 1 nearest?"""
    asked = rows[np.random.default_rng(0).choice(len(rows), 200, replace=False)]
    farthest = faiss.knn(asked, rows, K + 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1:]
    return bool((cosines(asked) >= farthest - graph.TIE).mean() >= cells.PROBE_RECALL)


def _pynndescent(rows: Array) -> Array:
    """With more neighbours than are asked for: 11 have recall 0.900 at a million rows, in 41 s."""
    import pynndescent

    made = pynndescent.NNDescent(rows, "dot", n_neighbors=K + 6, random_state=0, n_jobs=_threads())
    return _others(made.neighbor_graph[0][:, : K + 1].astype(np.int64))


def _others(found: Array) -> Array:
    """(n, K) int32: without the row itself, or without the last where it is not among them."""
    own = found == np.arange(len(found))[:, None]
    own[~own.any(axis=1), -1] = True
    return found[~own].reshape(len(found), -1).astype(np.int32)


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


PEERS: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    ("faiss-cpu", ", inverted lists", _inverted),
    ("faiss-cpu", ", HNSW", _hnsw),
    ("hnswlib", "", _hnswlib),
    ("pynndescent", "", _pynndescent),
)

CASES: tuple[Case, ...] = (
    Case("graph-peers", peers, long=True, quick=False),
    Case("graph-peers-million", million_of_peers, long=True, quick=False),
)
