"""A clean pool with copies and wrong responses put in, and labels that say which is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Record = dict[str, str]


def corrupt(
    records: Sequence[Mapping[str, str]],
    rng: np.random.Generator,
    *,
    wrong: int,
    copies: int,
    copied: int = 60,
    dropped: int = 0,
    same_source: bool = False,
) -> tuple[list[Record], dict[str, str]]:
    """The records, `wrong` of them with another row's response, and `copies` copies of `copied` right ones.

    dropped      rows left out first: as many as copies keeps the pool's size
    same_source  a wrong response comes from a row of the same `source`, so that its form is right

    Returns the rows in random order with new ids, and id -> "clean", "wrong" or "copy".
    """
    rows = [dict(records[int(i)]) for i in rng.permutation(len(records))]
    right, others = rows[wrong + dropped :], rows[:wrong]
    for row in others:
        drawn = (right[int(i)] for i in rng.permutation(len(right)))
        row["completion"] = next(
            other["completion"]
            for other in drawn
            if other["completion"] != row["completion"]
            and not (same_source and other["source"] != row["source"])
        )
    again = [dict(right[int(i)]) for i in rng.integers(copied, size=copies)]
    made = [(row, "clean") for row in right] + [(row, "wrong") for row in others]
    made += [(row, "copy") for row in again]
    made = [made[int(i)] for i in rng.permutation(len(made))]
    ids = [f"row-{place:06d}" for place in range(len(made))]
    pool = [{**row, "id": name} for name, (row, _) in zip(ids, made, strict=True)]
    return pool, {name: kind for name, (_, kind) in zip(ids, made, strict=True)}
