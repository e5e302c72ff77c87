"""What a response to another prompt costs the model: rows answered with other rows' responses.

[choice] A wrong response and a right one that the model has not learnt yet both cost it much. How much a
response costs that has nothing to do with its prompt can be measured, on pairs made for it: what costs far
less is not such a one. (After the decoys of target-decoy searches, Elias and Gygi, Nature Methods 2007.) What
the same responses cost after their own prompts says whether the model distinguishes the two at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretune.measure.batches import TokenRows
from coretune.types import IGNORED, Array, Rows

DRAWN = 4  # pairs drawn for one that is wanted: a pair whose responses are equal is none


@dataclass(frozen=True)
class Mismatched:
    """Prompts of a pool, each with the response of another row; to be measured as rows are.

    prompts    (m,) int64 pool rows
    responses  (m,) int64 pool rows, none with the very response, or the very prompt, that the other has
    longest    tokens; what is longer is cut at its end
    """

    rows: TokenRows
    prompts: Rows
    responses: Rows
    longest: int

    @classmethod
    def of(cls, rows: TokenRows, length: Array, count: int, seed: int) -> Mismatched:
        """`count` pairs, drawn once and for all by the seed; fewer where most responses or prompts are the
        same, and none where no row has a prompt: a response would be held against itself.

        length  (n,) tokens of each row: no pair is longer than the longest of them
        """
        drawn = np.random.default_rng([seed, 9]).integers(len(length), size=(2, DRAWN * count))
        pairs = cls(rows, drawn[0], drawn[1], int(length.max()))
        first, second = rows.tokens(drawn[0]), rows.tokens(drawn[1])
        starts = zip(rows.prompt_length[drawn[0]], rows.prompt_length[drawn[1]], strict=True)
        good = [
            not (np.array_equal(one[i:], other[j:]) or np.array_equal(one[:i], other[:j]))
            for one, other, (i, j) in zip(first, second, starts, strict=True)
        ]
        kept = np.flatnonzero(good)[:count]
        return cls(rows, drawn[0][kept], drawn[1][kept], pairs.longest)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def prompt_length(self) -> Array:
        return self.rows.prompt_length[self.prompts]

    def tokens(self, rows: Rows) -> Sequence[Array]:
        return self._joined(
            self.rows.tokens(self.prompts[rows]), self.rows.tokens(self.responses[rows]), rows
        )

    def labels(self, rows: Rows) -> Sequence[Array]:
        """A prompt counts nowhere; behind it what counts of the other row."""
        prompts = [np.full(start, IGNORED) for start in self.prompt_length[rows]]
        return self._joined(prompts, self.rows.labels(self.responses[rows]), rows)

    def _joined(self, prompts: Sequence[Array], responses: Sequence[Array], rows: Rows) -> list[Array]:
        """Each first row up to the end of its prompt, then the second from the end of its own."""
        ends = zip(self.prompt_length[rows], self.rows.prompt_length[self.responses[rows]], strict=True)
        return [
            np.concatenate([one[:i], other[j:]])[: self.longest]
            for one, other, (i, j) in zip(prompts, responses, ends, strict=True)
        ]
