"""The cases of bench/scale.py about choosing rows: facility location along a graph and between all pairs."""

from __future__ import annotations

from scale_row import Case

CASES: tuple[Case, ...] = ()
