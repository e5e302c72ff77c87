"""Rows that are the same but for upper case, white space and punctuation. Signs of arithmetic are kept.

The rule was measured on real text before it was made one: it finds every row whose format was edited, and
takes no row that must stay; shared words and cosines of embeddings do (`bench/near_duplicates.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from coretune.rounds.exact_duplicates import Read, digests, lowest_equal
from coretune.types import Rows

#: How tokenizers of bytes and of pieces write a space, a line's end, a tabulator.
SPACES = "\u0120\u2581\u010a\u010d\u0109"
DROPPED = re.compile(rf"[\s{SPACES}.,;:!?¿¡'\"`´‘’“”«»()\[\]{{}}<>|_…·。、，！？]+")


def folded(pieces: Iterable[str]) -> list[bytes]:
    """Of each piece of a vocabulary, as the tokenizer writes it, what counts."""
    return [DROPPED.sub("", piece).casefold().encode() for piece in pieces]


def folded_to(n: int, tokens: Read, pieces: list[bytes]) -> Rows:
    """(n,) int64: the lowest row with the same text, folded; a row without an equal is its own.

    n       rows in the pool
    tokens  of some rows, as in `PoolRows`
    pieces  token -> its text, as `folded` has it
    """

    def contents(block: Rows) -> Iterator[bytes]:
        for ids in tokens(block):
            yield b"".join([pieces[token] for token in np.asarray(ids).tolist()])

    return lowest_equal(digests(n, contents))
