"""The rows that `coretune demo-real` ships: short ones of GSM8K (MIT) and OpenBookQA (Apache-2.0).

    python bench/demo_rows.py GSM8K CHOICE    # folders of pool.jsonl and eval.jsonl; writes into the package

Drawn with seed 0; running it again on the same data writes the same files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from pools import read_rows, write_lines

from coretune.playground.real_pool import HELD_OUT, ROWS, SHIPPED

LONGEST = 360  # characters of prompt and response
EACH = {ROWS: 420, HELD_OUT: 100}  # rows of either source


def main() -> int:
    gsm8k, choice = map(Path, sys.argv[1:3])
    rng = np.random.default_rng(0)
    for name, file in ((ROWS, "pool.jsonl"), (HELD_OUT, "eval.jsonl")):
        kept: list[str] = []
        for source, folder in (("gsm8k", gsm8k), ("openbookqa", choice)):
            rows = [row for row in map(json.loads, read_rows(folder / file)) if row["source"] == source]
            short = [row for row in rows if len(row["prompt"] + row["completion"]) <= LONGEST]
            for i in np.sort(rng.choice(len(short), EACH[name], replace=False)):
                fields = {key: short[i][key] for key in ("prompt", "completion", "source")}
                kept.append(json.dumps(fields, ensure_ascii=False))
        write_lines(SHIPPED / name, kept)
        print(f"{SHIPPED.name}/{name}: {len(kept)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
