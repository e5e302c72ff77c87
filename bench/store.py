"""Does a store outlive its writers? Passes are killed at random moments until each is finished.

    python bench/store.py                       200 kills
    python bench/store.py --quick --check       20 kills, seconds; exit 1 names each target missed

A pass measures 32 blocks of synthetic signals (no model) into a store, in a process that is killed (SIGKILL)
at a moment drawn from the first third of an uninterrupted pass, opening included, and started again until it
is through. Its files are then compared byte for byte with those of the uninterrupted pass. A kill leaves what
the operating system was given; what a power cut takes besides is a matter of the order of flushes, which a
test holds.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import numpy as np
from command import parser_of, tell_missed
from rich.console import Console
from rich.table import Table

from coretune.storing.manifest import MANIFEST, Manifest, array_path
from coretune.storing.store import Store, fill
from coretune.types import Array, Rows

FINGERPRINT = {"weights": "none", "settings": "synthetic"}
BLOCK, BLOCKS = 64, 32
ROWS = BLOCK * BLOCKS - 7
SIGNALS = {"loss": ((), np.float32), "gradient": ((512,), np.float32)}
MEASURING = 0.003  # seconds a block: about as long as committing it
FORK = multiprocessing.get_context("fork")  # a pass is over before a fresh interpreter would have begun


def measure(rows: Rows) -> Mapping[str, Array]:
    """A function of each row alone, nowhere zero; some rows NaN."""
    time.sleep(MEASURING)
    loss = np.where(rows % 11 == 5, np.nan, rows + 1).astype(np.float32)
    return {"loss": loss, "gradient": np.cos(np.outer(rows + 1, np.arange(1, 513))).astype(np.float32)}


def one_pass(folder: Path, measured: ctypes.c_longlong) -> None:
    def counted(rows: Rows) -> Mapping[str, Array]:
        measured.value += 1
        return measure(rows)

    with Store.open(folder, FINGERPRINT, ROWS, SIGNALS, BLOCK) as store:
        fill(store, counted)


def where_it_hit(folder: Path) -> str:
    """What a kill left behind."""
    if not (folder / MANIFEST).exists():
        return "before there was a manifest"
    manifest = Manifest.read(folder)
    if manifest.unreadable:
        return "inside a line of the manifest"
    for name in manifest.signals:
        data = array_path(folder, name).read_bytes() if array_path(folder, name).exists() else b""
        for block in manifest.missing:
            begin = manifest.offset(name, block)
            if any(data[begin : begin + BLOCK * manifest.row_bytes(name)]):
                return "between a block's bytes and its line"
    return "elsewhere"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def run(kills: int, home: Path, seed: int) -> tuple[Counter[str], float]:
    """Counts of what happened, and the seconds of the uninterrupted pass."""
    draw, counts = random.Random(seed), Counter[str]()
    measured = RawValue(ctypes.c_longlong, 0)  # no lock, which a killed process would hold for ever
    began = time.perf_counter()
    one_pass(home / "uninterrupted", measured)
    seconds, expected = time.perf_counter() - began, files(home / "uninterrupted")
    measured.value = 0
    folder = home / "killed"
    while counts["kills"] < kills or folder.exists():
        worker = FORK.Process(target=one_pass, args=(folder, measured))
        worker.start()
        if counts["kills"] < kills:
            worker.join(draw.uniform(0, seconds / 3))
            worker.kill()  # nothing happens to one that is through
        worker.join()
        if worker.exitcode == -signal.SIGKILL:
            counts["kills"] += 1
            counts[where_it_hit(folder)] += 1
            continue
        counts["passes"] += 1
        counts["exceptions"] += worker.exitcode != 0
        counts["divergent"] += files(folder) != expected
        shutil.rmtree(folder, ignore_errors=True)
    counts["blocks measured"] = measured.value
    return counts, seconds


def report(counts: Counter[str], seconds: float, console: Console) -> list[str]:
    """Prints the table; returns a line for each target missed."""
    again = counts["blocks measured"] - BLOCKS * counts["passes"]
    table = Table(title=f"{ROWS:,} rows in {BLOCKS} blocks, an uninterrupted pass takes {seconds:.2f} s")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("target", justify="right")
    table.add_row("kills", str(counts["kills"]), "")
    for place in (
        "before there was a manifest",
        "between a block's bytes and its line",
        "inside a line of the manifest",
        "elsewhere",
    ):
        table.add_row(f"  {place}", str(counts[place]), "")
    table.add_row("passes finished", str(counts["passes"]), "")
    targets = {"divergent": (counts["divergent"], 0), "exceptions": (counts["exceptions"], 0)}
    targets["blocks measured again"] = (again, counts["kills"])
    for name, (count, most) in targets.items():
        table.add_row(name, str(count), f"≤ {most}")
    console.print(table)
    return [f"{name}: {count}, target ≤ {most}" for name, (count, most) in targets.items() if count > most]


def machine(home: Path) -> str:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(":")[1].strip() if model else platform.processor()
    block = home / "flush"
    began = time.perf_counter()
    for _ in range(10):
        with block.open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    flush = (time.perf_counter() - began) / 10
    return f"{name}, {os.cpu_count()} cores, a flush takes {flush * 1e3:.1f} ms, numpy {np.__version__}"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--folder", help="where the stores go for the while; default: the temporary directory"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 kills")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        console.print(machine(Path(home)))
        counts, seconds = run(20 if options.quick else options.kills, Path(home), options.seed)
    return tell_missed(report(counts, seconds, console), options.check)


if __name__ == "__main__":
    sys.exit(main())
