"""The least of a function of one number on [0, 1], from few evaluations; all that was evaluated is kept.

Golden section and ternary search find the minimum of a unimodal function. Of any other they find some low
point, so a coarse grid may go first, and the best point evaluated counts, not the last.
"""

from __future__ import annotations

from collections.abc import Callable

#: What golden section keeps of an interval at each evaluation.
GOLDEN = (5.0**0.5 - 1.0) / 2.0

SEARCHES = ("golden", "ternary")


def minimise(
    function: Callable[[float], float], search: str, grid: int, tolerance: float, evaluations: int
) -> list[tuple[float, float]]:
    """(x, f(x)) of every evaluation, in order; no point is evaluated twice.

    grid         evenly spaced points evaluated first, 0 and 1 among them; the search then goes on between the
                 neighbours of the best. 0 or at least 3
    tolerance    the interval at which the search stops
    evaluations  the most there may be, the grid's included
    """
    known: dict[float, float] = {}

    def at(x: float) -> float:
        if x not in known:
            known[x] = function(x)
        return known[x]

    low, high = 0.0, 1.0
    if grid:
        points = [i / (grid - 1) for i in range(grid)]
        best = min(range(grid), key=lambda i: at(points[i]))
        low, high = points[max(best - 1, 0)], points[min(best + 1, grid - 1)]
    narrow = _golden if search == "golden" else _ternary
    narrow(at, low, high, tolerance, lambda: evaluations - len(known))
    return list(known.items())


def _golden(
    at: Callable[[float], float], low: float, high: float, tolerance: float, left_over: Callable[[], int]
) -> None:
    """One evaluation for each narrowing by GOLDEN, two at the start (Kiefer, 1953)."""
    if high - low <= tolerance or left_over() < 2:
        return
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = at(left), at(right)
    while True:
        lower = at_left <= at_right
        if lower:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
        if high - low <= tolerance or left_over() < 1:
            return
        if lower:
            at_left = at(left)
        else:
            at_right = at(right)


def _ternary(
    at: Callable[[float], float], low: float, high: float, tolerance: float, left_over: Callable[[], int]
) -> None:
    """Two evaluations for each narrowing by 2/3."""
    while high - low > tolerance and left_over() >= 2:
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        if at(left) <= at(right):
            high = right
        else:
            low = left
