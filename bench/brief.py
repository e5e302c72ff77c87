"""What does BRIEF's search cost, and how near to all pairs does each form of it come?

    python bench/brief.py                              74,000 rows of 8,192 dimensions, 5 %: minutes
    python bench/brief.py --rows 6000,12000,24000      several sizes, and 74,000 extrapolated from them
    python bench/brief.py --quick --check              seconds; exit 1 names each target missed

Features are synthetic, float16, memory-mapped from a temporary folder: directions in clusters, lengths from a
gamma distribution, instruction following partly opposed to knowledge, a tenth of the rows copies. The search
is the whole of `Brief.select`: the search for α, every greedy run, E(α), weights and certificate. Memory is
what the process holds beside the mapped features (anonymous pages), sampled while it runs.

The second table has the pools on which all pairs can be held, by all forms, at one α: the error that greedy
leaves, as a share of what it gains over a random draw with all pairs known.

The last row, "dense", is the formula as published: both distance matrices, float32, anew for every α. Its
seconds are those of one such computation at 4,000 rows, times 15 and the square of the ratio; nobody ran it.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from command import parser_of, tell_missed
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from coretune.select import engines
from coretune.select.brief import Brief
from coretune.select.composite import hold
from coretune.select.lower_level import Task
from coretune.select.partitions import parted_level
from coretune.select.spaces import Space, nearest_picks
from coretune.types import Array, Budget, Coreset, Pool

HEADLINE = (74_000, 8192)
SIGNALS = ("kn_gradient", "if_gradient")
MEMORY_TARGET = 4 * 2**30
LOSS_TARGET = {"graph": 0.05, "partitions": 0.25}  # shares of greedy's gain over random that a form may lose


def make_pool(folder: Path, n: int, d: int, seed: int) -> Pool:
    """Features on disk, mapped back."""
    rng = np.random.default_rng(seed)
    centers = [rng.standard_normal((max(1, n // per), d), dtype=np.float32) for per in (15, 40)]
    member = [rng.integers(len(center), size=n) for center in centers]
    length = rng.gamma(2.0, 4.0, size=(n, 1)).astype(np.float32) / np.float32(np.sqrt(d))
    source = np.arange(n)
    copies = rng.choice(n, size=n // 10, replace=False)
    source[copies] = rng.choice(np.setdiff1d(source, copies), size=len(copies))
    features = {}
    files = [np.lib.format.open_memmap(folder / f"{s}-{n}.npy", "w+", np.float16, (n, d)) for s in SIGNALS]
    for first in range(0, n, 2048):
        at = slice(first, min(first + 2048, n))
        kn, other = (
            length[at] * (c[m[at]] + 0.5 * rng.standard_normal((at.stop - first, d), dtype=np.float32))
            for c, m in zip(centers, member, strict=True)
        )
        files[0][at], files[1][at] = kn, 0.6 * other - 0.6 * kn
    for name, file in zip(SIGNALS, files, strict=True):
        for first in range(0, len(copies), 2048):
            rows = copies[first : first + 2048]
            file[rows] = file[source[rows]]
        file.flush()
        features[name] = np.load(folder / f"{name}-{n}.npy", mmap_mode="r")
    tokens = rng.integers(20, 400, size=n)
    return Pool(features, tokens, np.zeros(n, np.int32), np.ones(n, bool))


def anonymous() -> int:
    """Bytes this process holds that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Appends the most bytes held at any time inside, above those held before."""
    before, most, over = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def search(pool: Pool, share: float, selector: Brief) -> tuple[Coreset, float, float, int]:
    """The coreset, seconds, seconds of processors, bytes."""
    with peak() as most:
        began, busy = time.perf_counter(), time.process_time()
        result = selector.select(pool, Budget(round(share * pool.n)), np.random.default_rng(0))
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    return result, seconds, busy, most[0]


def spaces_of(pool: Pool) -> list[Space]:
    return [Space((pool.features[name],), np.arange(pool.n)) for name in SIGNALS]


def error_of(pool: Pool, rows: Array) -> float:
    """Mean distance to the nearest pick in each space, added: E, from all pairs with the picks."""
    return float(nearest_picks(spaces_of(pool), np.eye(2), rows)[1].sum(dtype=np.float64) / pool.n)


def drawn(pool: Pool, share: float) -> Array:
    return np.random.default_rng(1).choice(pool.n, size=round(share * pool.n), replace=False)


def as_published(folder: Path, n: int, d: int) -> tuple[float, float]:
    """Seconds and bytes of the dense formula, extrapolated."""
    small = make_pool(folder, 4000, d, 0)
    spaces = spaces_of(small)
    began = time.perf_counter()
    hold(spaces, np.float32)
    return 15.0 * 2.0 * (time.perf_counter() - began) * (n / small.n) ** 2, 4.0 * n * n


def cost_table(rows: list[int], d: int, share: float, lower: str, folder: Path) -> tuple[Table, list[str]]:
    table = Table(title=f"The whole search, {share:.0%} of the rows, {d:,} dimensions")
    for name in ("rows", "level", "runs", "α", "E", "random", "seconds", "CPU s", "GiB"):
        table.add_column(name, justify="right")
    measured, missed = [], []
    for n in rows:
        pool = make_pool(folder, n, d, 0)
        result, seconds, busy, held = search(pool, share, Brief(lower=lower))
        figures, random = result.figures, error_of(pool, drawn(pool, share))
        measured.append((n, seconds, busy, held))
        runs = len(figures["curve"])
        numbers = (f"{figures['alpha']:.3f}", f"{figures['E']:.3f}", f"{random:.3f}")
        size = (f"{seconds:.1f}", f"{busy:.1f}", f"{held / 2**30:.2f}")
        table.add_row(f"{n:,}", figures["lower_level"], str(runs), *numbers, *size)
        missed += (
            [f"memory at {n:,} rows: {held / 2**30:.2f} GiB, target ≤ 4"] if held > MEMORY_TARGET else []
        )
        missed += [f"greedy runs: {runs}, target ≤ 15"] if runs > 15 else []
        missed += broken(n, result)
        missed += (
            [f"E at {n:,} rows: {figures['E']:.3f}, random {random:.3f}"] if figures["E"] > random else []
        )
        for name in SIGNALS:
            (folder / f"{name}-{n}.npy").unlink()
    if len(rows) > 1:
        n, columns = HEADLINE[0], np.array(measured, dtype=float).T
        seconds, busy = (fitted(columns[0], column, (1, 2), n) for column in columns[1:3])
        held = fitted(columns[0], columns[3], (0, 1), n)
        table.add_section()
        numbers = (f"{seconds:.0f}", f"{busy:.0f}", f"{held / 2**30:.2f}")
        table.add_row(f"{n:,}", "fitted", "", "", "", "", *numbers)
    seconds, held = as_published(folder, HEADLINE[0], d)
    table.add_section()
    table.add_row(f"{HEADLINE[0]:,}", "dense", "15", "", "", "", f"{seconds:.0f}", "", f"{held / 2**30:.1f}")
    return table, missed


def fitted(sizes: Array, values: Array, powers: tuple[int, int], n: int) -> float:
    """The value at n of the least-squares a·size^p + b·size^q, a, b >= 0."""
    parts = nnls(np.stack([sizes**power for power in powers], axis=1), values)[0]
    return float(parts @ [float(n) ** power for power in powers])


def broken(n: int, result: Coreset) -> list[str]:
    """The bounds that do not hold: none should."""
    f = result.figures
    pairs = (("e_KN", "S_KN"), ("e_IF", "S_IF"), ("S_KN", "bound_KN"), ("S_IF", "bound_IF"))
    return [f"{n:,} rows: {a} {f[a]} > {b} {f[b]}" for a, b in pairs if f[a] > f[b] * (1 + 1e-9)]


def quality_table(n: int, d: int, share: float, folder: Path) -> tuple[Table, list[str]]:
    table = Table(title=f"Against all pairs: {n:,} rows, {d:,} dimensions, {share:.0%}, α = ½")
    for name in ("level", "greedy", "E", "lost", "target", "seconds"):
        table.add_column(name, justify="right")
    pool, missed = make_pool(folder, n, d, 1), []
    random = error_of(pool, drawn(pool, share))
    best: float | None = None
    for lower, greedy in (
        ("dense", "lazy"),
        ("dense", "stochastic"),
        ("graph", "lazy"),
        ("partitions", "lazy"),
    ):
        began = time.perf_counter()
        rows = at_half(pool, share, lower, greedy)
        seconds = time.perf_counter() - began
        error = error_of(pool, rows)
        best = error if best is None else best
        lost, most = (error - best) / (random - best), LOSS_TARGET.get(lower)
        limit = "" if most is None else f"≤ {most:.0%}"
        table.add_row(lower, greedy, f"{error:.3f}", f"{lost:.1%}", limit, f"{seconds:.1f}")
        if most is not None and lost > most:
            missed.append(f"{lower}: {lost:.1%} of greedy's gain over random lost, target ≤ {most:.0%}")
    table.add_row("random", "", f"{random:.3f}", "100.0%", "", "")
    return table, missed


def at_half(pool: Pool, share: float, lower: str, greedy: str) -> Array:
    """The picks of one form at α = ½; five parts, where a pool this small would be one."""
    if lower != "partitions":
        return search(pool, share, Brief(alpha=0.5, lower=lower, greedy=greedy))[0].indices
    level = parted_level(spaces_of(pool), k=128, seed=0, part_rows=-(-pool.n // 5))
    task = Task(Budget(round(share * pool.n)), pool.cost, np.ones(pool.n), greedy, seed=0)
    return level.pick(np.array([0.5, 0.5]), task).rows


def machine() -> str:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(":")[1].strip() if model else platform.processor()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    block = np.ones((2048, 2048), np.float32)
    began = time.perf_counter()
    block @ block
    speed = 2.0 * 2048**3 / (time.perf_counter() - began) / 1e9
    cores = f"{os.cpu_count()} cores, threads: {threads}"
    return f"{name}, {cores}, {speed:.0f} GFLOP/s in float32, numpy {np.__version__}"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", default=str(HEADLINE[0]), help="sizes, separated by commas")
    parser.add_argument("--dimensions", type=int, default=HEADLINE[1])
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--lower", default="auto", help="auto, dense, graph or partitions")
    parser.add_argument(
        "--folder", help="where the features go for the while; default: the temporary directory"
    )
    parser.add_argument("--quick", action="store_true", help="4,000 and 8,000 rows of 512 dimensions")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    if options.quick or "," in options.rows:
        engines.SEARCH_WORK = 0.0  # neighbours are searched as they are at the headline's size
    rows = [4000, 8000] if options.quick else [int(n) for n in options.rows.split(",")]
    d = 512 if options.quick else options.dimensions
    lower = "graph" if options.quick or "," in options.rows else options.lower
    console = Console()
    console.print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        warm = make_pool(Path(home), 200, 16, 0)  # compiles, so that no search pays for it
        for form in ("dense", "graph", "partitions"):
            search(warm, 0.1, Brief(alpha=0.5, lower=form))
        table, missed = cost_table(rows, d, options.share, lower, Path(home))
        console.print(table)
        table, more = quality_table(3000 if options.quick else 8000, min(d, 1024), options.share, Path(home))
        console.print(table)
    return tell_missed(missed + more, options.check)


if __name__ == "__main__":
    sys.exit(main())
