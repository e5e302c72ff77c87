"""Does joint selection by pursuit match a target as well as OMP, how much faster, and in how much memory?

    python bench/pursuit.py                       10k to 1M rows x 512, 10k x 4,096: some minutes
    python bench/pursuit.py --quick --check       10k x 512, seconds; exit 1 names each target missed
    python bench/pursuit.py --cases 100000x4096x2000 1000000x4096x10000        longer

A case is rows x dimensions x budget. The pool is 200 uneven clusters of columns of different lengths, 30 % of
them copies of 60 rows; the target is its mean. Everything runs on unit columns with the same ridge:

    gtp        coretune's selector, copies found and left out
    omp        coretune's OMP: one pass and one Cholesky update a step
    published  GradMatch's OMP from its formula: one pass, one Gram matrix built and solved anew a step, and
               NNLS on it where a weight turns negative
    top-k      the columns that point most towards the target, with the best weights they can have

`~` marks what would take too long: the passes of omp times their number; of published the steps at some sizes
up to the budget, each without NNLS, summed by the trapezoid rule, so that it would rather take longer.
Seconds are processor seconds of one core. The residual is ‖b − Σ w a‖ / ‖b‖; the objective, which all but
top-k minimise, adds the ridge. Memory is the most anonymous memory of the process while gtp runs: the map of
the features does not count, everything else does, Python included.
"""

from __future__ import annotations

import os

from command import parser_of, tell_missed

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: seconds of one core

import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from coretune.select.columns import Candidates, Columns, mean_column
from coretune.select.gtp import Gtp
from coretune.select.nnls import newton_nnls
from coretune.select.omp import omp
from coretune.select.pursuit import Pursuit, pursue
from coretune.select.ridge_fit import Dense
from coretune.types import Array, Budget, Pool

QUICK = ("10000x512x100", "10000x512x500")
CASES = (*QUICK, "10000x4096x500", "100000x512x2000", "100000x512x5000", "1000000x512x50000")
RIDGE = Gtp().ridge
PATIENCE = 60.0  # seconds that a slow one may take in a case; beyond it is extrapolated
LARGEST = 6_000  # Gram matrix that is built to time a step
BLOCK = 20_000


@dataclass(frozen=True)
class Case:
    rows: int
    width: int
    budget: int

    @classmethod
    def of(cls, text: str) -> Case:
        return cls(*(int(number) for number in text.split("x")))

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.width:,}, {self.budget:,} rows"


@dataclass(frozen=True)
class Result:
    """One line of the table; None where it was not measured."""

    name: str
    seconds: float
    extrapolated: bool = False
    rows: int | None = None
    distinct: int | None = None
    residual: float | None = None
    objective: float | None = None


def make_pool(case: Case, folder: Path, seed: int) -> tuple[Array, Array]:
    """(n, D) float16 memory map, and (n,) the row each row is a copy of (itself if of none)."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((200, case.width), dtype=np.float32)
    share = rng.dirichlet(np.ones(200))
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, (case.rows, case.width))
    for start in range(0, case.rows, BLOCK):
        count = min(BLOCK, case.rows - start)
        part = centers[rng.choice(200, size=count, p=share)]
        part += rng.standard_normal((count, case.width), dtype=np.float32)
        features[start : start + count] = part * rng.lognormal(0.0, 0.5, (count, 1)).astype(np.float32)
    source = np.arange(case.rows)
    copied = rng.choice(case.rows, size=int(0.3 * case.rows), replace=False)
    source[copied] = rng.choice(np.setdiff1d(source, copied)[:60], size=len(copied))
    for start in range(0, len(copied), BLOCK):
        part = copied[start : start + BLOCK]
        features[part] = features[source[part]]
    features.flush()
    del features
    return np.load(folder / "features.npy", mmap_mode="r"), source


class Memory:
    """Most anonymous memory of this process while it is watched, in GiB."""

    def __enter__(self) -> Memory:
        self.most, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            self.most = max(self.most, int(kib) / 2**20)


def timed(run: Callable[[], Pursuit]) -> tuple[Pursuit, float]:
    began = time.process_time()
    found = run()
    return found, time.process_time() - began


def by_gtp(features: Array, case: Case, source: Array) -> Result:
    pool = Pool(
        features={"trajectory": features},
        cost=np.ones(case.rows, np.int64),
        measured_at=np.zeros(case.rows, np.int32),
        usable=np.ones(case.rows, bool),
    )
    began = time.process_time()
    chosen = Gtp().choose(pool, Budget(case.budget))
    seconds = time.process_time() - began
    rows = chosen.indices
    return judged("gtp", features, rows, chosen.weights, seconds, source, chosen.figures["residuals"][0])


def judged(
    name: str, features: Array, rows: Array, weights: Array, seconds: float, source: Array, residual: float
) -> Result:
    """Weights of any scale; the objective is that of the best scale for the residual."""
    columns = np.asarray(features[rows], np.float64)
    target = mean_column(features, np.ones(len(features), bool))
    total = weights @ columns
    scale = _scale(total, target, residual)
    x = scale * weights * np.linalg.norm(columns, axis=1) / np.linalg.norm(target)
    objective = residual**2 + RIDGE * float(x @ x)
    return Result(name, seconds, False, len(rows), len(np.unique(source[rows])), residual, objective)


def _scale(total: Array, target: Array, residual: float) -> float:
    """The smaller s with ‖b − s t‖ = residual ‖b‖: with a ridge NNLS falls short of the target."""
    a, half, c = total @ total, total @ target, (1.0 - residual**2) * (target @ target)
    return float((half - np.sqrt(max(0.0, half**2 - a * c))) / a)


def by_omp(columns: Columns, target: Array, case: Case, source: Array) -> Result:
    everyone = np.ones(case.rows, bool)
    _, one = timed(lambda: omp(columns.top, target, 1, RIDGE, everyone))
    if one * case.budget > PATIENCE:
        return Result("omp", one * case.budget, extrapolated=True)
    found, seconds = timed(lambda: omp(columns.top, target, case.budget, RIDGE, everyone))
    return _of(found, "omp", seconds, source)


def _of(found: Pursuit, name: str, seconds: float, source: Array) -> Result:
    distinct = len(np.unique(source[found.rows]))
    return Result(name, seconds, False, len(found.rows), distinct, found.residual, min(found.objectives))


def published_step(
    columns: Columns, chosen: list[int], residual: Array, target: Array
) -> tuple[list[int], Array, Array]:
    """S, x and r after one step of GradMatch's Algorithm 2 with unit columns and weights >= 0."""
    correlation = columns.correlate(residual)
    correlation[chosen] = -np.inf
    chosen = [*chosen, int(correlation.argmax())]
    gram, units = gram_of(columns, chosen)
    x = np.linalg.solve(gram, units @ target)
    if x.min() < 0.0:
        lower = np.linalg.cholesky(gram)
        x = nnls(lower.T, np.linalg.solve(lower, units @ target))[0]
        chosen, units, x = (
            [row for row, weight in zip(chosen, x, strict=True) if weight > 0],
            units[x > 0],
            x[x > 0],
        )
    return chosen, x, target - x @ units


def gram_of(columns: Columns, chosen: list[int]) -> tuple[Array, Array]:
    """(k, k) float64 Gram matrix with the ridge, and (k, D) float32 unit columns."""
    units = np.asarray(columns.features[chosen], np.float32) / columns.norms[chosen, None].astype(np.float32)
    return (units @ units.T).astype(np.float64) + RIDGE * np.eye(len(chosen)), units


def by_published(columns: Columns, target: Array, case: Case, path: Array, source: Array) -> Result:
    """path: rows in the place of S where steps are only sampled."""
    target = target / np.linalg.norm(target)
    chosen: list[int] = []
    residual, x, began = target, np.zeros(0), time.process_time()
    while len(chosen) < case.budget and time.process_time() - began < PATIENCE / 4:
        chosen, x, residual = published_step(columns, chosen, residual, target)
    seconds = time.process_time() - began
    if len(chosen) < case.budget:
        sizes = np.unique(np.linspace(len(chosen), min(case.budget, len(path), LARGEST), 5).astype(int))
        took = [step_seconds(columns, path[:size].tolist(), target) for size in sizes]
        seconds += float(np.trapezoid(took, sizes)) + took[-1] * (case.budget - sizes[-1])
        return Result("published", seconds, extrapolated=True)
    error = float(np.linalg.norm(residual))
    distinct, objective = len(np.unique(source[chosen])), error**2 + RIDGE * float(x @ x)
    return Result("published", seconds, False, len(chosen), distinct, error, objective)


def step_seconds(columns: Columns, chosen: list[int], target: Array) -> float:
    """One step of size k without NNLS: pass, Gram matrix, solve."""
    began = time.process_time()
    columns.correlate(target).argmax()
    gram, units = gram_of(columns, chosen)
    np.linalg.solve(gram, units @ target)
    return time.process_time() - began


def by_rank(columns: Columns, target: Array, case: Case, source: Array) -> Result:
    began = time.process_time()
    found: Candidates = columns.top(target / np.linalg.norm(target), case.budget, np.ones(case.rows, bool))
    seconds = time.process_time() - began
    units = found.columns / found.norms[:, None].astype(np.float32)
    goal = target / np.linalg.norm(target)
    all_, none = np.ones(len(units), bool), np.zeros(len(units), bool)
    x = newton_nnls(
        Dense(units, goal, RIDGE), goal, RIDGE, none, all_
    )  # the best weights these rows can have
    error = float(np.linalg.norm(goal - x @ units))
    distinct = len(np.unique(source[found.rows]))
    return Result("top-k", seconds, False, len(found.rows), distinct, error, error**2 + RIDGE * float(x @ x))


def run(case: Case, folder: Path, seed: int) -> tuple[list[Result], float]:
    """The lines of a case, and the most memory that gtp took."""
    features, source = make_pool(case, folder, seed)
    warm_up(case.width)
    with Memory() as memory:
        gtp = by_gtp(features, case, source)
    columns = Columns.of(features)
    target = mean_column(features, np.ones(case.rows, bool))
    path = columns.top(target, min(case.budget, LARGEST), np.ones(case.rows, bool)).rows
    results = [
        gtp,
        by_omp(columns, target, case, source),
        by_published(columns, target, case, path, source),
        by_rank(columns, target, case, source),
    ]
    return results, memory.most


def warm_up(width: int) -> None:
    """Compile what is compiled at first use."""
    small = np.random.default_rng(0).normal(size=(300, width)).astype(np.float16)
    columns = Columns.of(small)
    for engine in (omp, pursue):
        engine(columns.top, mean_column(small, np.ones(300, bool)), 20, RIDGE, np.ones(300, bool))


def table(case: Case, results: list[Result], memory: float) -> Table:
    shown = Table(title=f"{case}; gtp took {memory:.2f} GiB at most")
    shown.add_column("method")
    for name in ("rows", "distinct", "residual", "objective", "seconds", "x gtp"):
        shown.add_column(name, justify="right")
    for one in results:
        shown.add_row(
            one.name,
            "-" if one.rows is None else f"{one.rows:,}",
            "-" if one.distinct is None else f"{one.distinct:,}",
            "-" if one.residual is None else f"{one.residual:.5f}",
            "-" if one.objective is None else f"{one.objective:.6f}",
            f"{'~' if one.extrapolated else ''}{one.seconds:,.2f}",
            f"{one.seconds / results[0].seconds:,.1f}",
        )
    return shown


def missed(case: Case, results: list[Result], memory: float) -> list[str]:
    """A line for each target missed."""
    gtp, rival, published, _ = results
    found = []
    if (
        rival.residual is not None
        and gtp.residual is not None
        and gtp.residual > max(1.02 * rival.residual, 0.01)
    ):
        found.append(
            f"residual {gtp.residual:.4f}, target <= 1.02 x OMP's {rival.residual:.4f}, or 0.01 of the target"
        )
    if case.rows >= 100_000 and case.budget >= 2000 and published.seconds < 50 * gtp.seconds:
        found.append(f"{published.seconds / gtp.seconds:.0f} times faster than published, target >= 50")
    if case.rows >= 100_000 and case.width >= 4096 and rival.seconds < 10 * gtp.seconds:
        found.append(f"{rival.seconds / gtp.seconds:.1f} times faster than OMP, target >= 10")
    if memory > 2.0:
        found.append(f"{memory:.2f} GiB above the map, target <= 2")
    if gtp.distinct != gtp.rows:
        found.append(f"{gtp.distinct} distinct of {gtp.rows} rows, target all")
    return [f"{case}: {line}" for line in found]


def machine() -> str:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(":")[1].strip() if model else platform.processor()
    return f"{name}, {os.cpu_count()} cores, one used, numpy {np.__version__}, ridge {RIDGE}"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--cases", nargs="+", help="rows x dimensions x budget each, such as 100000x512x2000")
    parser.add_argument(
        "--folder", help="where the features go for the while; default: the temporary directory"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    console = Console()
    console.print(machine())
    lines: list[str] = []
    for text in options.cases or (QUICK if options.quick else CASES):
        case = Case.of(text)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results, memory = run(case, Path(folder), options.seed)
        console.print(table(case, results, memory))
        lines += missed(case, results, memory)
    return tell_missed(lines, options.check)


if __name__ == "__main__":
    sys.exit(main())
