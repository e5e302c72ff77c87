"""The cases of bench/scale.py about files: the corpus of a million rows, the audit of twenty refreshes."""

from __future__ import annotations

from scale_row import Case

CASES: tuple[Case, ...] = ()
