"""The cases of bench/scale.py about choosing rows: facility location along a graph and between all pairs.

Peers are no dependency: `pip install 'coretune[bench]'`. Every peer gets the same graph, or the same
features, and the same number of picks; F of its set is computed here, by the same formula for all: the mean
similarity of a row to the nearest pick. Graphs are given, and turning them into what a peer reads is not
counted; between all pairs everything is, from the features on, a peer's matrix of all similarities too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scale_row import CUT, PEER_LIMIT, Case, Line, Measured, best, measured, within
from scipy import sparse

from coretune.select.dense import DenseSimilarity, cosine_similarity
from coretune.select.greedy import lazy_greedy, stochastic_greedy
from coretune.select.objective import Objective
from coretune.select.similarity import GraphSimilarity, Similarity
from coretune.select.two_rounds import two_rounds
from coretune.types import Array, Budget, Rows

SHARE = 20  # one row in so many is chosen
BLOCK = 4096


def random_graph(n: int, k: int, seed: int = 0) -> GraphSimilarity:
    """Rows in groups of 50 that list k rows each, mostly of their own group; made symmetric by union."""
    rng = np.random.default_rng(seed)
    start = np.repeat(np.arange(n), k)
    near = start // 50 * 50 + rng.integers(50, size=n * k)
    end = np.where(rng.random(n * k) < 0.9, np.minimum(near, n - 1), rng.integers(n, size=n * k))
    value = rng.uniform(0.3, 1.0, size=n * k).astype(np.float32)
    kept = start != end
    one = sparse.csr_matrix((value[kept], (start[kept], end[kept])), shape=(n, n))
    both = one.maximum(one.T).tocsr()
    both.data = np.minimum(both.data, np.float32(1.0))  # pairs drawn twice were added up
    return GraphSimilarity(both.indptr.astype(np.int64), both.indices.astype(np.int32), both.data)


def features(n: int, d: int, folder: Path, seed: int = 0) -> Array:
    """(n, d) float16 unit rows on disk: 30 themes, a topic for every 50 rows, noise on top."""
    rng = np.random.default_rng(seed)
    themes = rng.standard_normal((30, d), np.float32)
    topics = themes[rng.integers(30, size=max(1, n // 50))]
    topics = topics + rng.standard_normal(topics.shape, np.float32)
    file = np.lib.format.open_memmap(folder / f"{n}x{d}.npy", "w+", np.float16, (n, d))
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        rows = topics[rng.integers(len(topics), size=m)] + np.float32(0.7) * rng.standard_normal(
            (m, d), np.float32
        )
        file[first : first + m] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    file.flush()
    return np.load(folder / f"{n}x{d}.npy", mmap_mode="r")


def objective_of(similarity: Similarity) -> Objective:
    return Objective(similarity, np.zeros(similarity.n), 1.0 / similarity.n, np.ones(similarity.n))


def greedy(
    engine: Callable[..., object],
    similarity: Similarity,
    picks: int,
    run: Callable[[Callable[[], object]], Measured] = measured,
) -> Measured:
    n = similarity.n
    everyone, tokens = np.ones(n, dtype=bool), np.ones(n, dtype=np.int64)
    return run(lambda: engine(objective_of(similarity), Budget(picks), tokens, everyone))


def line(what: str, who: str, n: int, found: Measured, worth: float, **more: object) -> Line:
    return Line(what, who, n, found.seconds, found.busy, found.gib, f"F {worth:.4f}", **more)


def compiled() -> None:
    """Numba's compiling is no part of what is measured: once a machine, then read from the cache."""
    greedy(lazy_greedy, random_graph(500, 5), 20)
    with TemporaryDirectory() as folder:
        source = cosine_similarity(features(500, 8, Path(folder)))
        for memory in (0, 10**5, 10**8):
            greedy(partial(lazy_greedy, memory=memory), source, 20)


def sparse_lines(quick: bool) -> list[Line]:
    """K = 5 % along a graph of k = 10, 10k to 1M rows."""
    compiled()
    lines = []
    for n in (5_000, 20_000) if quick else (10_000, 100_000, 1_000_000):
        graph = random_graph(n, 10)
        found = greedy(lazy_greedy, graph, n // SHARE)
        targets = [("≤ 30 s", found.seconds <= 30.0), ("≤ 3 GiB", found.gib <= 3.0)] if n == 1_000_000 else []
        worth = float(found.result.gains.sum())
        what = f"facility location, graph of k 10, 1 row in {SHARE}"
        lines.append(line(what, "coretune", n, found, worth, targets=tuple(targets)))
    return lines


def against_apricot(quick: bool) -> list[Line]:
    n = 2_000 if quick else 20_000
    return _beside(n, partial(random_graph, n, 10), "graph of k 10", "apricot-select", _apricot, 20.0)


def against_submodlib_sparse(quick: bool) -> list[Line]:
    """At growing sizes, up to the first at which it is cut."""
    lines: list[Line] = []
    for n in (1_000, 2_000) if quick else (5_000, 10_000, 20_000):
        if not any(line.note for line in lines):
            made = partial(random_graph, n, 10)
            lines += _beside(n, made, "graph of k 10", "submodlib-py", _submodlib_sparse, 5.0)
    return lines


def against_submodlib_dense(quick: bool) -> list[Line]:
    n = 1_000 if quick else 10_000
    what = "all pairs of 256 dimensions"
    return _beside(n, partial(_all_pairs, n), what, "submodlib-py", _submodlib_dense, 5.0)


def _all_pairs(n: int) -> DenseSimilarity:
    with TemporaryDirectory() as folder:
        return cosine_similarity(np.asarray(features(n, 256, Path(folder)), dtype=np.float32))


def _beside(
    n: int,
    make: Callable[[], GraphSimilarity | DenseSimilarity],
    what: str,
    package: str,
    peer: Callable[..., object],
    times: float,
) -> list[Line]:
    """Ours and a peer's on one source; a peer that is not there, fails or is cut is said so."""
    compiled()
    picks, source = n // SHARE, make()
    own = greedy(lazy_greedy, source, picks, best)
    value = objective_of(source).value
    ours = value(own.result.indices)
    what = f"facility location, {what}, 1 row in {SHARE}"
    mine = line(what, "coretune", n, own, ours, fitted=False)
    try:
        who = f"{package} {version(package)}"
        found = within(PEER_LIMIT, partial(_ready, peer, make, picks))
    except (PackageNotFoundError, ImportError) as error:
        return [mine, Line(what, package, n, note=f"not installed: {error}")]
    except Exception as error:  # whatever a peer dies of is its line in the table
        return [mine, Line(what, who, n, note=f"{type(error).__name__}: {error}"[:80])]
    ratio = found.busy / max(own.busy, 1e-3)
    least = "at least " if found.cut else ""
    targets = [(f"≥ {times:.0f} × faster than {package}: {least}{ratio:.0f} ×", ratio >= times)]
    if found.cut:
        theirs = Line(what, who, n, found.seconds, found.busy, found.gib, note=CUT, fitted=False)
    else:
        worth = value(np.asarray(found.result, dtype=np.int64))
        targets.append(("F no lower", ours >= worth - 1e-6))
        theirs = line(what, who, n, found, worth)
    return [replace(mine, targets=tuple(targets) if n >= 5_000 else ()), theirs]


def _ready(
    peer: Callable[..., object],
    make: Callable[[], GraphSimilarity | DenseSimilarity],
    picks: int,
) -> Callable[[], object]:
    """The call that is measured; what a peer compiles is not."""
    source = make()
    kernel = _edges(source) if isinstance(source, GraphSimilarity) else None

    def call() -> object:
        with _silence():
            return peer(_pairs(source) if kernel is None else kernel, picks)

    with _silence():
        peer(_part(source, 400), 20)
    return call


def _edges(source: GraphSimilarity) -> object:
    """(n, n) sparse similarities, 1 on the diagonal."""
    n = source.n
    edges = sparse.csr_matrix((source.similarity, source.indices, source.indptr), shape=(n, n))
    return (edges + sparse.identity(n, np.float32, "csr")).tocsr()


def _pairs(source: DenseSimilarity) -> Array:
    """(n, n) float32 similarities, 1 on the diagonal."""
    whole = np.maximum(source.block(slice(None), slice(None)), 0.0)
    np.fill_diagonal(whole, 1.0)
    return whole


def _part(source: GraphSimilarity | DenseSimilarity, n: int) -> object:
    """The kernel of the first rows alone."""
    if isinstance(source, GraphSimilarity):
        return _edges(source)[:n, :n]
    return _pairs(source.at(np.arange(n)))


def _apricot(kernel: object, picks: int) -> Rows:
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(picks, metric="precomputed", optimizer="lazy").fit(kernel).ranking


def _submodlib_sparse(kernel: object, picks: int) -> list[int]:
    from submodlib import FacilityLocationFunction

    n = kernel.shape[0]
    f = FacilityLocationFunction(n=n, mode="sparse", separate_rep=False, sijs=kernel, num_neighbors=10)
    return [row for row, _ in f.maximize(picks, "LazyGreedy", False, False, verbose=False)]


def _submodlib_dense(kernel: object, picks: int) -> list[int]:
    from submodlib import FacilityLocationFunction

    n = kernel.shape[0]
    f = FacilityLocationFunction(n=n, mode="dense", separate_rep=False, sijs=kernel)
    return [row for row, _ in f.maximize(picks, "LazyGreedy", False, False, verbose=False)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Peers print bars, submodlib from C++."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nothing = [os.dup(file) for file in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    for file in (1, 2):
        os.dup2(nothing, file)
    try:
        yield
    finally:
        for file, before in zip((1, 2), kept, strict=True):
            os.dup2(before, file)
            os.close(before)
        os.close(nothing)


def dense_sizes(quick: bool) -> list[Line]:
    """All pairs, exact, at growing sizes; then what cheaper engines leave of F at the last."""
    sizes, d = ((500, 1_000, 2_000), 64) if quick else ((5_000, 10_000, 20_000), 1024)
    return _dense(sizes, d, cheaper=True)


def dense_large(quick: bool) -> list[Line]:
    """The target's size."""
    return _dense((2_000,), 64, cheaper=False) if quick else _dense((74_000,), 1024, cheaper=False)


def _dense(sizes: tuple[int, ...], d: int, cheaper: bool) -> list[Line]:
    compiled()
    what = f"facility location, all pairs of {d:,} dimensions, 1 row in {SHARE}"
    lines = []
    with TemporaryDirectory() as folder:
        for n in sizes:
            source = cosine_similarity(features(n, d, Path(folder)))
            found = greedy(lazy_greedy, source, n // SHARE)
            large = n == 74_000
            targets = (("≤ 10 min", found.seconds <= 600), ("≤ 4 GiB", found.gib <= 4)) if large else ()
            lines.append(line(what, "coretune", n, found, float(found.result.gains.sum()), targets=targets))
        if cheaper:
            rng = np.random.default_rng(0)
            engines = (
                ("stochastic, ε 0.1", partial(stochastic_greedy, rng=rng, epsilon=0.1)),
                ("two rounds", partial(two_rounds, seed=0, part_rows=max(128, n // 4))),
            )
            for name, engine in engines:
                found = greedy(engine, source, n // SHARE)
                worth = objective_of(source).value(found.result.indices)
                lines.append(line(what, f"coretune, {name}", n, found, worth, fitted=False))
            drawn = np.random.default_rng(1).choice(n, n // SHARE, replace=False)
            lines.append(
                Line(what, "random", n, worth=f"F {objective_of(source).value(drawn):.4f}", fitted=False)
            )
    return lines


CASES: tuple[Case, ...] = (
    Case("sparse", sparse_lines),
    Case("apricot", against_apricot),
    Case("submodlib-sparse", against_submodlib_sparse),
    Case("submodlib-dense", against_submodlib_dense),
    Case("dense-sizes", dense_sizes),
    Case("dense", dense_large, long=True),
)
