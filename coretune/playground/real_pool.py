"""1,200 real rows for the demo on a real model: half of them right, 30 % copies, 20 % wrong responses.

Shipped are 840 short rows of GSM8K (MIT) and OpenBookQA (Apache-2.0), half each, and 200 of their test
parts to score; real/LICENSES.md names the sources. Copies and wrong responses are put in here, with a seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from coretune.playground.corrupt import corrupt
from coretune.playground.pool import Playground, Record

SHIPPED = Path(__file__).parent / "real"
ROWS, HELD_OUT = "rows.jsonl", "held_out.jsonl"
WRONG, COPIES = 240, 360


def make_real_pool(seed: int) -> Playground:
    """The pool with its labels; a wrong response is one of another row of the same source."""
    rng = np.random.default_rng([seed, 8])
    records, labels = corrupt(_read(ROWS), rng, wrong=WRONG, copies=COPIES, same_source=True)
    return Playground(records, labels, held_out=_read(HELD_OUT), target=[])


def _read(name: str) -> list[Record]:
    lines = (SHIPPED / name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
