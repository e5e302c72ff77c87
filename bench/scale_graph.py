"""The cases of bench/scale.py about the graph, its repair, refreshes, the corpus and the audit."""

from __future__ import annotations

from scale_row import Case

CASES: tuple[Case, ...] = ()
