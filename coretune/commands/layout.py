"""How a row is made up: its turns, how many tokens of each are trained on, what was cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coretune.data.encode import encode_batch
from coretune.data.formats import Conversation, interpret
from coretune.data.raw import BadRow, CorpusError
from coretune.data.recognise import filled_columns, recognise
from coretune.data.render import Loss
from coretune.data.tokenised import Tokenised
from coretune.types import IGNORED, Array

WHOLE = 1 << 40  # tokens; no row is cut to so many


@dataclass(frozen=True)
class Turn:
    """role: of the turn, or of turns whose borders the template does not show; cut: tokens left out."""

    role: str
    tokens: int
    trained: int
    cut: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def format_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The format of a row by itself."""
    return recognise("row", Counter([filled_columns(record, columns)]), record, columns)


def turns_of(
    record: Mapping[str, Any], labels: Array, tokenizer: Any, columns: Mapping[str, str], train_on: str
) -> list[Turn]:
    """The turns of a row; [] where the template does not show where they begin.

    labels  (length,) of the row as it is trained on, cut to fit
    """
    every = train_on == "all"
    try:
        format = format_of(record, columns)
        example = interpret(record, format, columns, tokenizer.chat_template is not None, every)
        whole = _whole(record, format, tokenizer, columns, Loss(every_turn=every))
        if isinstance(example, Tokenised):
            names, ends = ["tokens"], list[int]()
        elif isinstance(example, Conversation):
            names, ends = _borders(example, tokenizer)
        else:
            prompt = example.prompt or ""
            names, ends = ["prompt", "response"], [len(_ids(tokenizer, prompt, special=True))]
            names, ends = (names, ends) if prompt else (["text"], [])
    except (BadRow, CorpusError):  # a table's filled-in nulls may read otherwise than what was encoded
        return []
    leading = int(whole[0] == tokenizer.bos_token_id)
    return _counted(names, [*ends, len(whole)], labels, len(whole) - len(labels), leading)


def _whole(
    record: Mapping[str, Any], format: str, tokenizer: Any, columns: Mapping[str, str], loss: Loss
) -> list[int]:
    """The row's tokens before anything was cut."""
    batch: dict[str, list[Any]] = {
        "record": [json.dumps(record)],
        "problem": [None],
        "file": ["row"],
        "number": [1],
    }
    encoded = encode_batch(batch, tokenizer, {"row": format}, {"row": columns}, WHOLE, loss)
    if encoded["problem"][0] is not None:
        raise BadRow(encoded["problem"][0])
    ids: list[int] = encoded["input_ids"][0].tolist()
    return ids


def _borders(example: Conversation, tokenizer: Any) -> tuple[list[str], list[int]]:
    """Names of the turns, and after how many tokens each but the last one ends. Turns that the template
    renders otherwise, or not at all, when nothing follows them go together with the next one."""
    turns = [*example.prompt, *example.completion]
    settings = {"tokenize": False, **example.arguments}
    whole = tokenizer.apply_chat_template(turns, **settings)
    names, ends, pending = [], [], []
    for count, turn in enumerate(turns, 1):
        pending.append(str(turn["role"]))
        if count < len(turns):
            try:
                text = tokenizer.apply_chat_template(turns[:count], **settings)
            except Exception:  # a template is a program: many refuse a system turn alone
                continue
            if not text or not whole.startswith(text):
                continue
            ends.append(len(_ids(tokenizer, text, special=False)))
        names.append(", ".join(pending))
        pending = []
    return names, ends


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _counted(names: Sequence[str], ends: Sequence[int], labels: Array, cut: int, leading: int) -> list[Turn]:
    """Tokens in the row as it was, of which `cut` are gone behind the first `leading` ones."""
    trained = np.insert(labels != IGNORED, [leading] * cut, False)
    gone = np.insert(np.zeros(len(labels), bool), [leading] * cut, True)
    starts = [0, *ends[:-1]]
    return [
        Turn(name, end - start, int(trained[start:end].sum()), int(gone[start:end].sum()))
        for name, start, end in zip(names, starts, ends, strict=True)
    ]
