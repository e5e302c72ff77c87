"""Token ids of texts and of their beginnings, each text tokenised once.

    whole      <|user|> a <|assistant|> b <|user|> c <|assistant|> d
    beginning  <|user|> a <|assistant|>
               taken from the whole's   tokenised

A tokenizer splits a text at its special tokens before anything else, and what stands between two of them is
tokenised by itself. So up to the last special token of a beginning its ids are the whole's; what follows from
there is tokenised, and is mostly a few characters that all rows have. Without special tokens, and for a
tokenizer without offsets, the beginning is tokenised as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np


def tokenised(
    wholes: Sequence[str], beginnings: Sequence[Sequence[str]], tokenizer: Any
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Ids of the wholes, and of each one's beginnings; nothing is added to them."""
    if not wholes:
        return [], []
    encoded = _encoded(wholes, tokenizer)
    ids = encoded["input_ids"]
    encodings = encoded.encodings or [None] * len(ids)
    splitting = _splitting(tokenizer)
    parts = [
        [_part(text, whole, places) for text in texts]
        for texts, whole, places in zip(
            beginnings, wholes, map(_places, wholes, ids, encodings, repeat(splitting)), strict=True
        )
    ]
    texts = list(dict.fromkeys(text for row in parts for _, text in row))
    known = dict(zip(texts, _encoded(texts, tokenizer)["input_ids"], strict=True)) if texts else {}
    return ids, [
        [[*tokens[:count], *known[text]] for count, text in row]
        for row, tokens in zip(parts, ids, strict=True)
    ]


def _places(
    text: str, ids: Sequence[int], encoding: Any, splitting: Mapping[int, str]
) -> list[tuple[int, int, int]]:
    """(which token, begin, end in characters) of each special token of a text.

    An unknown character has the id of a special token too, and is none.
    """
    if encoding is None or not splitting:
        return []
    found = np.flatnonzero(np.isin(ids, list(splitting))).tolist()
    places = [(at, *encoding.token_to_chars(at)) for at in found]
    return [(at, begin, end) for at, begin, end in places if splitting[ids[at]] in text[begin:end]]


def _part(text: str, whole: str, places: Sequence[tuple[int, int, int]]) -> tuple[int, str]:
    """How many ids a beginning shares with the whole for certain, and its rest."""
    if whole.startswith(text):
        for at, begin, end in reversed(places):
            if end <= len(text):
                return at, text[begin:]
    return 0, text


def _splitting(tokenizer: Any) -> dict[int, str]:
    """The tokens at which a text is split before it is normalised."""
    added = tokenizer.added_tokens_decoder
    return {number: token.content for number, token in added.items() if not token.normalized}


def _encoded(texts: Sequence[str], tokenizer: Any) -> Any:
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
