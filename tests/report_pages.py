"""Rows whose names and texts a page must not trip over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from recorded_run import FakeRows, fake_rows, make_run

from coretune.report import write_report

EVIL = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)> &amp; {{ 7 * 7 }}"


HISTORY = [{"loss": 2.0, "step": 10}, {"loss": 1.5, "step": 20}, {"eval_loss": 1.7, "step": 20, "epoch": 2}]


def evil_rows(n: int = 60) -> FakeRows:
    rows = fake_rows(n)
    texts = [
        (EVIL if row == 5 else prompt, EVIL if row == 7 else a) for row, (prompt, a) in enumerate(rows.texts)
    ]
    source = np.array([EVIL if row % 2 else "good" for row in range(n)], dtype=object)
    return FakeRows(texts, source)


def compare_file(folder: Path) -> None:
    curves = [{"arm": "grace", "flops": [1e9, 2e9], "loss": [2.0, 1.0], "error": [0.1, 0.1]}]
    table = {"title": "At equal steps", "header": ["arm", "loss"], "rows": [["<b>grace</b>", "1.0 ± 0.1"]]}
    found = {"title": "two arms", "tables": [table], "curves": curves}
    (folder / "compare.json").write_text(json.dumps(found))


# ------------------------------------------------------------------------------- names of anybody's choice

INHERITED = ("constructor", "toString", "__proto__", "hasOwnProperty", "valueOf")


class OddRows(FakeRows):
    """Rows and sources named as what every JavaScript object has."""

    @property
    def ids(self) -> list[str]:
        return [*INHERITED, *(f"row-{row}" for row in range(len(INHERITED), len(self.texts)))]


def odd_page(folder: Path, n: int = 60) -> Path:
    rows = fake_rows(n)
    return write_report(
        make_run(folder, rows=OddRows(rows.texts, np.array([INHERITED[i % 5] for i in range(n)], object)))
    )
