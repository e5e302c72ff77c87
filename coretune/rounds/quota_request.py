"""What a user writes as `coreset.quota`, and what it means for one pool and budget.

    quota: {source: 0.2}                             no source gets more than a fifth of the budget
    quota: {source: {math: {min: 0.3}, web: 0.1}}    math at least 30 %, web at most 10 %, others as they come

Shares are of the budget, in its unit, rows or tokens; a number alone is a maximum. To whole rows or tokens a
minimum is rounded down and a maximum up, so that shares that add up to 1 can be met. Rows without a value are
a group of their own, written null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from coretune.types import Array, Budget, Pool, Quota

#: The one column of the user's rows that is known of every pool.
COLUMN = "source"
#: The pool's feature that says which group a row is of.
FEATURE = f"group:{COLUMN}"
#: Of a quota that names no value: one for each that there is.
NO_QUOTA = (("each", 0.0, 1.0),)
#: A share of 0.3 of 10 rows is 3, whatever floats make of it.
EXACT = 1e-9


@dataclass(frozen=True)
class QuotaRequest:
    """A quota before the pool is known.

    each   most that any one value may get, a share
    named  (value, least, most) of those that have shares of their own
    """

    each: float
    named: tuple[tuple[str | None, float, float], ...] = ()

    def resolve(self, pool: Pool, budget: Budget) -> Quota:
        """The quota for this pool's groups; ValueError where no row has a value that it names, or any
        value."""
        codes, group = np.unique(pool.feature(FEATURE), return_inverse=True)
        if codes.tolist() == [_code(None)] and any(
            value is not None for value, _, _ in self.named or NO_QUOTA
        ):
            raise ValueError(
                f"quota is by {COLUMN}, and no row has one: give the rows a column {COLUMN}, or say which "
                "it is "
                f"with columns: {{{COLUMN}: …}}"
            )
        least = np.zeros(len(codes), np.int64)
        most = np.full(len(codes), math.ceil(self.each * budget.amount - EXACT), np.int64)
        names = [f"a {COLUMN}"] * len(codes)
        for value, low, high in self.named:
            at = np.flatnonzero(codes == _code(value))
            if not len(at):
                raise ValueError(
                    f"quota: no row has the {COLUMN} {value!r}, which is to get {low:g} to {high:g} of the "
                    "budget: correct its name, or leave it out"
                )
            for position in at:
                least[position] = math.floor(low * budget.amount + EXACT)
                most[position] = math.ceil(high * budget.amount - EXACT)
                names[position] = f"{COLUMN} {value!r}"
        return Quota(group.astype(np.int64), least, most, tuple(names))


def groups(values: Array | None, n: int) -> Array:
    """(n,) int64 the feature: equal for rows of equal value, (n,) text or None; None = no row has one.

    A hash, so that it means the same in every pool and needs no table beside it.
    """
    if values is None:
        return np.full(n, _code(None), np.int64)
    known = {value: _code(value) for value in set(values.tolist())}
    return np.array([known[value] for value in values.tolist()], np.int64)


def parse_quota(given: Any) -> QuotaRequest:
    """Read a quota; raises ValueError with the forms there are."""
    forms = f"write {{{COLUMN}: 0.2}}, or {{{COLUMN}: {{math: {{min: 0.1, max: 0.4}}, web: 0.1}}}}"
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ValueError(f"quota is {given!r}: {forms}")
    ((column, shares),) = given.items()
    if column != COLUMN:
        raise ValueError(
            f"quota is by {column!r}, and rows are grouped by {COLUMN} alone: set columns: "
            f"{{{COLUMN}: {column}}}, and write {COLUMN} here"
        )
    if not isinstance(shares, Mapping):
        return _binding(QuotaRequest(_share("the maximum", shares, forms)), forms)
    named = tuple((value, *_bounds(value, share, forms)) for value, share in shares.items())
    if (total := sum(low for _, low, _ in named)) > 1 + EXACT:
        raise ValueError(f"quota: the minima add up to {total:g} of the budget: let them add up to 1 at most")
    request = QuotaRequest(1.0, tuple((None if v is None else str(v), low, high) for v, low, high in named))
    return _binding(request, forms)


def _binding(request: QuotaRequest, forms: str) -> QuotaRequest:
    if request.each == 1.0 and all((low, high) == (0.0, 1.0) for _, low, high in request.named):
        raise ValueError(f"quota binds nobody, for all may have the whole budget: leave it out, or {forms}")
    return request


def _bounds(value: Any, share: Any, forms: str) -> tuple[float, float]:
    if not isinstance(share, Mapping):
        return 0.0, _share(repr(value), share, forms)
    if not share or set(share) - {"min", "max"}:
        raise ValueError(f"quota of {value!r} is {dict(share)}: {forms}")
    low = _share(f"min of {value!r}", share.get("min", 0.0), forms)
    high = _share(f"max of {value!r}", share.get("max", 1.0), forms)
    if low > high:
        raise ValueError(f"quota of {value!r}: min {low:g} is above max {high:g}")
    return low, high


def _share(what: str, share: Any, forms: str) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise ValueError(f"quota: {what} is {share!r}, no share of the budget from 0 to 1: {forms}")
    return float(share)


def _code(value: str | None) -> int:
    written = b"" if value is None else b"=" + value.encode()
    return int.from_bytes(blake2b(written, digest_size=8).digest(), "little", signed=True)
