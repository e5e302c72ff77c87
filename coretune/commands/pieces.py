"""Tokens as the text that each of them adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\ufffd"  # what a decoder writes for bytes that are no character yet


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; "" where a character is not finished yet.

    Decoded behind the last piece, not alone: sentence pieces lose their leading space at a text's beginning.
    """
    found: list[str] = []
    begin, done = 0, 0  # ids[begin:done] are written out already, ids[done:] are not
    for end in range(1, len(ids) + 1):
        before = _decoded(tokenizer, ids[begin:done])
        text = _decoded(tokenizer, ids[begin:end])
        if text.endswith(HALF) and end < len(ids):
            found.append("")
            continue
        found.append(text[len(before) :])
        begin, done = done, end
    return found


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
