"""What does selection cost beside training? All that it adds, in ratios measured side by side, with goals.

    python bench/models.py smollm2                                # the model, once
    python bench/cost.py --model FOLDER --data "FOLDER;characters=300;rows=2000" --check
    python bench/cost.py --model FOLDER --data FOLDER --only steps,scans
    python bench/cost.py --quick                                  # the demo's model and pool, under a minute

Full fine-tuning and LoRA of rank 16 on all linear layers, autocast to bfloat16, eager attention, one thread,
micro-batches of 4 rows; so bench/real.py trains. Times are processor seconds, which neighbours disturb less
than those of the clock. A training step is that of the stock SFTTrainer; on a CPU it passes every position
through the head. Beside it stand ratios to a step that passes those with a label alone
(playground/cpu_speed.py), as TRL has it on GPUs. --check exits 1 and names each goal missed.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cost_plan
import cost_rest
import cost_scans
import cost_steps
from command import parser_of, quiet, tell_missed
from cost_row import Asked, Figure
from pools import pool_and_model
from rich.console import Console
from rich.table import Table

PARTS = {
    "plan": cost_plan.figures,
    "steps": cost_steps.figures,
    "scans": cost_scans.figures,
    "rest": cost_rest.figures,
}
QUICK = ("scans", "rest")  # the others train in processes of their own, each of which imports for ten seconds
SIZE = "characters=300;rows=2000"


def table(found: list[Figure], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in ("work", "figure", "goal", "", "measured"):
        shown.add_column(name, justify="right" if name in ("figure", "goal") else "left")
    for figure in found:
        shown.add_row(figure.work, *figure.cells, figure.measured)
    return shown


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="folder; default: the demo's model")
    parser.add_argument("--data", help=f"folder of a pool, also “FOLDER;{SIZE}”; default: a generated one")
    parser.add_argument("--only", help=f"parts of the table: {','.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help=f"fewer rows, and only {','.join(QUICK)}")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each goal missed")
    given = parser.parse_args()
    only = given.only.split(",") if given.only else [*(QUICK if given.quick else PARTS)]
    if unknown := set(only) - set(PARTS):
        parser.error(f"no part is named {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # read by every part when it begins
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as home:
        pool, model = pool_and_model(given.data, given.model, home, Path(home))
        asked = Asked(Path(model).resolve(), Path(pool).resolve(), Path(home), given.quick)
        for name in only:
            began = time.perf_counter()
            # In a process of its own, whose memory is its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), quiet) as fresh:
                found += fresh.submit(PARTS[name], asked).result()
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        title = f"{Path(model).name}, {Path(pool).name}, {os.cpu_count()} cores, {platform.machine()}"
    Console(width=None if sys.stdout.isatty() else 160).print(table(found, title))
    return tell_missed([figure.miss for figure in found if figure.met is False], given.check)


if __name__ == "__main__":
    sys.exit(main())
