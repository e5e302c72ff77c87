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


def folded(pieces: Iterable[str | None]) -> list[bytes]:
    """Of each piece of a vocabulary, as the tokenizer writes it, what counts; of a number without a piece
    the number."""
    return [
        _number(token) if piece is None else DROPPED.sub("", piece).casefold().encode()
        for token, piece in enumerate(pieces)
    ]


def folded_to(n: int, tokens: Read, pieces: list[bytes]) -> Rows:
    """(n,) int64: the lowest row with the same text, folded; a row without an equal is its own.

    n       rows in the pool
    tokens  of some rows, as in `PoolRows`
    pieces  token -> its text, as `folded` has it
    """

    def contents(block: Rows) -> Iterator[bytes]:
        for ids in tokens(block):
            known = np.asarray(ids).tolist()
            parts = [pieces[token] if token < len(pieces) else _number(token) for token in known]
            # Of nothing but signs these count: rows without a letter are not all one.
            yield b"".join(parts) or b"".join(map(_number, known))

    return lowest_equal(digests(n, contents))


def _number(token: int) -> bytes:
    """Of a token that has no text, in a form that no text has."""
    return b"\x00%d\x00" % token
