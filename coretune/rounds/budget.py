"""What a user writes as a budget, and what it means for one pool.

600 or "600 rows" · "10%" or 0.1, a share of the pool's rows · "2M tokens", "50k tokens".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from coretune.types import Budget, Pool

_MULTIPLE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_WRITTEN = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([kmb]?)\s*(%|rows?|tokens?|)", re.IGNORECASE)
_FORMS = "write rows (600), a share (10%) or tokens (2M tokens)"


@dataclass(frozen=True)
class BudgetRequest:
    """A budget before the pool is known.

    amount  rows, tokens, or a share in (0, 1]: a fraction, so that 10 % of 30 rows is 3 and not ⌈3.0…4⌉
    unit    "rows" | "tokens" | "share"
    """

    amount: Fraction
    unit: str

    def resolve(self, pool: Pool) -> Budget:
        """The budget for this pool; a share is ⌈share · N⌉ rows, N counting unusable rows too.

        N counts them [choice] so that a row whose signal fails in a later round does not change the budget.
        Raises ValueError when the usable rows cannot fill it, or when no row fits.
        """
        if self.unit == "tokens":
            return self._tokens(pool)
        rows = math.ceil(self.amount * pool.n) if self.unit == "share" else int(self.amount)
        usable = int(pool.usable.sum())
        if rows > usable:
            share = f" ({float(self.amount):.4g} of {pool.n})" if self.unit == "share" else ""
            raise ValueError(
                f"budget of {rows} rows{share}, but only {usable} are usable: ask for at most {usable}"
            )
        return Budget(rows, "rows")

    def _tokens(self, pool: Pool) -> Budget:
        tokens, cost = int(self.amount), pool.cost[pool.usable]
        if not len(cost):
            raise ValueError(f"budget of {tokens} tokens, but 0 rows are usable: mend the pool's signals")
        shortest, whole = int(cost.min()), int(cost.sum())
        if tokens > whole:
            raise ValueError(
                f"budget of {tokens} tokens, but the usable rows hold {whole}: ask for at most {whole} tokens"
            )
        if tokens < shortest:
            raise ValueError(
                f"budget of {tokens} tokens, but the shortest usable row has {shortest}: "
                f"ask for at least {shortest} tokens"
            )
        return Budget(tokens, "tokens")


def parse_budget(text: str | int | float) -> BudgetRequest:
    """Read a budget; raises ValueError with the forms there are.

    A number below 1 is a share, a whole number a count of rows. 1.0 could be either and is refused, and so is
    a multiple without a unit ("50k").
    """
    written = str(text).strip()
    match = _WRITTEN.fullmatch(_plain(text) if isinstance(text, float) else written)
    if isinstance(text, bool) or match is None:
        raise ValueError(f"budget {written!r} is not understood: {_FORMS}")
    number, multiple, unit = match[1], match[2].lower(), match[3].lower()
    amount = Fraction(number) * _MULTIPLE[multiple]
    if amount == 0:
        raise ValueError(f"budget {written!r} chooses nothing: {_FORMS}")
    if unit == "%":
        return _share(amount / 100, written, multiple)
    if not unit and multiple:
        raise ValueError(f"budget {written!r} has no unit: write {written} rows or {written} tokens")
    if not unit and "." in number and amount <= 1:
        return _share(amount, written, multiple)
    if amount.denominator != 1:
        raise ValueError(f"budget {written!r} is no whole number of {unit or 'rows'}: {_FORMS}")
    return BudgetRequest(amount, "tokens" if unit.startswith("token") else "rows")


def _share(share: Fraction, written: str, multiple: str) -> BudgetRequest:
    if share == 1 and "%" not in written:
        raise ValueError(f"budget {written} could be 1 row or all of them: write 1 or 100%")
    if share > 1 or multiple:
        raise ValueError(f"budget {written!r} is more than the whole pool: ask for at most 100%")
    return BudgetRequest(share, "share")


def _plain(number: float) -> str:
    """0.00001 as "0.00001", not "1e-05"."""
    return format(Decimal(repr(number)), "f")
