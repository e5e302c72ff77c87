"""Where the answers of a conversation stand, found without marks in the chat template.

    whole     <user> a <assistant> b <user> c <assistant> d
    earlier   <user> a <assistant>                            up to the answer: the turns before it
              <user> a <assistant> b                          up to its end: it and the turns before

A template that writes a turn otherwise when more turns follow (some leave the reasoning of earlier answers
out) has no such places: it is refused, for the model would be trained on what it is never asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coretune.data.raw import BadRow, CorpusError
from coretune.data.turns import Message
from coretune.types import Array

REMEDY = "give a template that does not (training.chat_template_path), or set train_on: last"
EXCHANGES = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]


def refuse_unextending(tokenizer: Any) -> None:
    """CorpusError where the chat template writes the first answer of a plain conversation otherwise when
    another follows."""
    if tokenizer.chat_template is None:
        return
    try:
        whole = tokenizer.apply_chat_template(EXCHANGES, tokenize=False)
        texts = answer_texts(tokenizer, EXCHANGES, [1], {"tokenize": False})
    except Exception:  # a template may want other turns: its rows say so
        return
    if not all(whole.startswith(text) for text in texts):
        raise CorpusError(
            "train_on is all, and the tokenizer's chat template writes an answer otherwise when another turn "
            f"follows; {REMEDY}"
        )


def answer_texts(
    tokenizer: Any, turns: Sequence[Message], answers: Sequence[int], settings: Mapping[str, Any]
) -> list[str]:
    """Of each of the turns `answers`: the conversation up to it, and up to its end."""
    texts = []
    for place in answers:
        before = list(turns[:place])
        texts.append(tokenizer.apply_chat_template(before, add_generation_prompt=True, **settings))
        texts.append(tokenizer.apply_chat_template(list(turns[: place + 1]), **settings))
    return texts


def marked(ids: Sequence[int], earlier: Sequence[Sequence[int]], last: int) -> Array:
    """(t,) bool: whether a token is of an answer.

    earlier  token ids of `answer_texts`
    last     place of the last answer's first token
    Raises BadRow where a text's tokens are not the beginning of `ids`.
    """
    counted = np.zeros(len(ids), bool)
    counted[last:] = True
    for number, text in enumerate(earlier):
        if list(ids[: len(text)]) != list(text):
            raise BadRow(
                f"the chat template writes answer {number // 2 + 1} otherwise when more turns follow, or its "
                f"tokens merge with what follows; {REMEDY}"
            )
    for begin, end in zip(earlier[::2], earlier[1::2], strict=True):
        counted[len(begin) : len(end)] = True
    return counted
