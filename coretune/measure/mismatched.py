"""What a response to another prompt costs the model: rows answered with other rows' responses.

[choice] A wrong response and a right one that the model has not learnt yet both cost it much. How much a
response costs that has nothing to do with its prompt can be measured, on pairs made for it: what costs far
less is not such a one. (After the decoys of target-decoy searches, Elias and Gygi, Nature Methods 2007.) What
the same responses cost after their own prompts says whether the model tells the two apart at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretune.measure.batches import TokenRows
from coretune.types import Array, Rows

DRAWN = 4  # pairs drawn for one that is wanted: a pair whose responses are equal is none


@dataclass(frozen=True)
class Mismatched:
    """Prompts of a pool, each with the response of another row; to be measured as rows are.

    prompts    (m,) int64 pool rows
    responses  (m,) int64 pool rows, none with the very response that its prompt has
    longest    tokens; what is longer is cut at its end
    """

    rows: TokenRows
    prompts: Rows
    responses: Rows
    longest: int

    @classmethod
    def of(cls, rows: TokenRows, length: Array, count: int, seed: int) -> Mismatched:
        """`count` pairs, drawn once and for all by the seed; fewer where most responses are the same.

        length  (n,) tokens of each row: no pair is longer than the longest of them
        """
        drawn = np.random.default_rng([seed, 9]).integers(len(length), size=(2, DRAWN * count))
        pairs = cls(rows, drawn[0], drawn[1], int(length.max()))
        good = [
            not np.array_equal(own, other)
            for own, other in zip(pairs._responses(drawn[0]), pairs._responses(drawn[1]), strict=True)
        ]
        kept = np.flatnonzero(good)[:count]
        return cls(rows, drawn[0][kept], drawn[1][kept], pairs.longest)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def prompt_length(self) -> Array:
        return self.rows.prompt_length[self.prompts]

    def tokens(self, rows: Rows) -> Sequence[Array]:
        prompts, responses = self.prompts[rows], self.responses[rows]
        own = zip(self.rows.tokens(prompts), self.rows.prompt_length[prompts], strict=True)
        others = zip(own, self._responses(responses), strict=True)
        return [np.concatenate([ids[:until], other])[: self.longest] for (ids, until), other in others]

    def _responses(self, rows: Rows) -> list[Array]:
        starts = self.rows.prompt_length[rows]
        return [np.asarray(ids)[start:] for ids, start in zip(self.rows.tokens(rows), starts, strict=True)]
