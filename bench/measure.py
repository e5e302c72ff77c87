"""What does measuring an example cost? Each signal, relative to one training step of the same model.

    python bench/measure.py                       3 M and 15 M parameters, with peak memory
    python bench/measure.py --quick --check       3 M, under a minute; exit 1 names each target missed
    python bench/measure.py --device cuda --sizes 1b,8b --precision bfloat16

Weights are random, for speed does not depend on them. Rows are all 256 tokens, the second half response. The
unit is a full fine-tuning step (forward, backward, AdamW) on a batch of the same rows. All arms take turns in
one process and the quickest turn counts: on a CPU by processor seconds, which neighbours disturb little, on a
GPU by wall clock. Peak memory is what a fresh process takes above the loaded model, in one batch.
"""

from __future__ import annotations

import gc
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from command import parser_of, tell_missed
from measure_arms import (
    ARMS,
    LENGTH,
    LESS,
    LESS_BLOCK,
    LESS_INTERVAL,
    LESS_PAPER,
    LESS_WIDE,
    LORA_ALL,
    LORA_PAPER,
    LORA_WIDE,
    ONLINE,
    ONLINE_LORA,
    SIZES,
    SLOW_ARMS,
    STEP,
    TRL_LORA,
    TRL_STEP,
    Bench,
)
from rich.console import Console
from rich.table import Table

#: Arm -> at most this part of a training step's time.
TIME_TARGETS = {
    "loss": 0.40,
    "embeddings": 0.40,
    "loss and embeddings": 0.40,
    "head_gradient": 0.40,
    "gradient_norm": 0.45,
    LORA_ALL: 0.75,
}
# Times faster than batch 1 with the same parameters and dimension. A forward pass alone is a third of a step,
# and on a CPU batch 1 fills the processor: there the dense projection alone can make such a difference.
LESS_TARGET = 10.0
ONLINE_TARGET = 1.10  # times the stock step
MEMORY_TARGET = 1.3  # times a training step's peak
MEMORY_ARMS = ("loss", "gradient_norm", LORA_ALL)


def quickest(bench: Bench, turns: int) -> dict[str, float]:
    """Arm -> seconds per example, the least of `turns`; one turn before that warms up."""
    runs = {name: prepare(bench) for name, prepare in ARMS.items()}
    for name, (model, _) in SLOW_ARMS.items():
        runs[f"{name}, gradients"] = bench.less(model(bench))
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(turns + 1):
        for name, run in runs.items():
            seconds = timed(run, bench.device)
            if turn:
                best[name] = min(best[name], seconds / bench.batch)
    for name, (model, dim) in SLOW_ARMS.items():
        # One block of columns is timed for all, which are alike: they are the larger part by far.
        block = min(timed(bench.less_block(model(bench)), bench.device) for _ in range(2))
        best[name] = best.pop(f"{name}, gradients") + block / LESS_INTERVAL * dim / LESS_BLOCK
    return best


def timed(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begin = time.process_time()
        run()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_bytes(bench: Bench, arm: str) -> int:
    """What one run takes above the loaded model; to be called in a fresh process."""
    run = ARMS[arm](bench)
    gc.collect()
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    page = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def peaks(bench: Bench) -> dict[str, int]:
    found = {}
    for arm in (STEP, *MEMORY_ARMS):
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found[arm] = fresh.apply(peak_bytes, (bench, arm))
    return found


def report(bench: Bench, seconds: dict[str, float], memory: dict[str, int], console: Console) -> list[str]:
    """Prints the table of one size; returns a line for each target missed."""
    millions = sum(parameter.numel() for parameter in bench.full.parameters()) / 1e6
    table = Table(
        title=f"{millions:.1f} M parameters, {bench.batch} rows of {LENGTH} tokens, half of them response"
    )
    for column in ("signal", "ms an example", "of a training step", "target", "peak MiB"):
        table.add_column(column, justify="left" if column == "signal" else "right")
    missed = []
    for name, value in seconds.items():
        share, target = value / seconds[STEP], TIME_TARGETS.get(name)
        if target is not None and share > target:
            missed.append(f"{bench.size}: {name} takes {share:.3f} of a training step, target {target:.2f}")
        table.add_row(
            name,
            f"{value * 1e3:.2f}",
            f"{share:.3f}",
            "" if target is None else f"≤ {target:.2f}",
            f"{memory[name] / 2**20:.0f}" if name in memory else "",
        )
    console.print(table)
    for stock, online in ((TRL_STEP, ONLINE), (TRL_LORA, ONLINE_LORA)):
        line = f"{online} takes {seconds[online] / seconds[stock]:.3f} × the stock step"
        console.print(f"{line} (target ≤ {ONLINE_TARGET:.2f} ×)")
        if seconds[online] / seconds[stock] > ONLINE_TARGET:
            missed.append(f"{bench.size}: {line}, target {ONLINE_TARGET:.2f} ×")
    for slow, fast in ((LESS, LORA_ALL), (LESS_WIDE, LORA_WIDE), (LESS_PAPER, LORA_PAPER)):
        line = f"{seconds[slow] / seconds[fast]:.1f} × faster than “{slow}”"
        console.print(f"{fast}: {line} (target ≥ {LESS_TARGET:.0f} ×)")
        if seconds[slow] / seconds[fast] < LESS_TARGET:
            missed.append(f"{bench.size}: {fast} is {line}, target {LESS_TARGET:.0f} ×")
    for name in memory:
        ratio = memory[name] / memory[STEP]
        if ratio > MEMORY_TARGET:
            missed.append(
                f"{bench.size}: {name} peaks at {ratio:.2f} × a training step, target {MEMORY_TARGET} ×"
            )
    return missed


def machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = model[0].split(":")[1].strip() if model else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="3m,15m", help=f"of {','.join(SIZES)}")
    parser.add_argument("--batch", type=int, default=16, help="rows in a batch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--quick", action="store_true", help="3 M parameters, one turn, no memory")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each target missed")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.turns = "3m", 1
    console = Console()
    console.print(f"{machine(options.device)}, {options.precision}, {options.attention} attention")
    missed = []
    for size in options.sizes.split(","):
        bench = Bench(size, options.batch, options.device, options.precision, options.attention)
        memory = {} if options.quick else peaks(bench)
        missed += report(bench, quickest(bench, options.turns), memory, console)
    return tell_missed(missed, options.check)


if __name__ == "__main__":
    sys.exit(main())
