"""Examples -> token ids: prompt and response, prompts cut to fit, what cannot be learnt named.

    ids   [ BOS | prompt ........ | response ........ ]
                ^ cut here        ^ labels are -100 to the left, or as `Loss` has it

The ids are those of TRL's SFTTrainer for the same rows (its `prompt` and `completion` as messages under a
chat template, as text without one), except that a prompt whose tokens are not the beginning of the whole is
refused here and only warned of there: the model would be trained on another context than it is asked in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from coretune.data.answers import marked
from coretune.data.beginnings import tokenised
from coretune.data.formats import identity, interpret, source_of, weight_of
from coretune.data.raw import BadRow, LeftOut
from coretune.data.render import Loss, Rendered, Tokenizer, render
from coretune.data.tokenised import Tokenised, refuse_loss
from coretune.types import IGNORED

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Tokens:
    """Token ids of the texts of a `Rendered`."""

    whole: list[int]
    prompt: list[int] | None
    earlier: list[list[int]]


def encode_batch(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: Tokenizer,
    formats: Mapping[str, str],
    columns: Mapping[str, Mapping[str, str]],
    max_length: int,
    loss: Loss | None = None,
) -> dict[str, list[Any]]:
    """For `datasets.map(batched=True)`: raw rows to tokenised rows, one for one.

    batch    columns record (JSON text), meant (the same without filled-in nulls, or null; may be left out),
             problem (or null), file, number
    formats, columns  file -> its format, its mapping of columns; a file that is not in `columns` has none
    Returns  the columns of EMPTY; digest is blake2b of the tokenised content; where problem is not null the
             others hold nothing of meaning.
    """
    loss = loss or Loss()
    size = len(batch["record"])
    meant = batch.get("meant") or [None] * size
    rows: list[dict[str, Any]] = [dict(EMPTY, problem=problem) for problem in batch["problem"]]
    rendered: dict[int, Rendered] = {}
    for index, row in enumerate(rows):
        if row["problem"] is None:
            try:
                record = json.loads(meant[index] or batch["record"][index])
                file = batch["file"][index]
                format, mapping = formats[file], columns.get(file, {})
                row["id"] = identity(record, mapping, f"{file}:{batch['number'][index]}")
                row |= {"source": source_of(record, mapping), "weight": weight_of(record, mapping)}
                chat = tokenizer.chat_template is not None
                example = interpret(record, format, mapping, chat, loss.every_turn)
                if isinstance(example, Tokenised):
                    refuse_loss(loss)
                    row.update(_settle_ids(example, tokenizer.bos_token_id, max_length))
                else:
                    rendered[index] = render(example, tokenizer, loss)
            except BadRow as bad:
                row |= {"problem": str(bad), "left_out": isinstance(bad, LeftOut)}
    for index, tokens in zip(rendered, _tokenise(list(rendered.values()), tokenizer), strict=True):
        try:
            rows[index].update(_settle(rendered[index], tokens, tokenizer.bos_token_id, max_length))
        except BadRow as bad:
            rows[index]["problem"] = str(bad)
    return {name: [row[name] for row in rows] for name in EMPTY}


EMPTY: Mapping[str, Any] = {
    "input_ids": np.zeros(0, np.int32),  # arrays, which arrow takes several times as fast as lists
    "labels": np.zeros(0, np.int32),
    "prompt_length": 0,
    "truncated": False,
    "id": "",
    "source": None,
    "unfit": 0,
    "earlier": 0,
    "weight": 1.0,
    "digest": b"",
    "left_out": False,
    "problem": None,
}


def _tokenise(rendered: list[Rendered], tokenizer: Tokenizer) -> list[Tokens]:
    """A call a kind of text."""
    found: dict[int, Tokens] = {}
    for special in (False, True):
        rows = {at: row for at, row in enumerate(rendered) if row.adds == special}
        wholes = [row.whole for row in rows.values()]
        parts = [([] if row.prompt is None else [row.prompt]) + row.earlier for row in rows.values()]
        made = _with_special(wholes, parts, tokenizer) if special else tokenised(wholes, parts, tokenizer)
        for (at, row), ids, beginnings in zip(rows.items(), *made, strict=True):
            prompt = None if row.prompt is None else beginnings.pop(0)
            found[at] = Tokens(ids, prompt, beginnings)
    return [found[at] for at in range(len(rendered))]


def _with_special(
    wholes: Sequence[str], beginnings: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Ids of the wholes and of each one's beginnings, with the tokenizer's BOS."""
    texts = [text for whole, parts in zip(wholes, beginnings, strict=True) for text in (whole, *parts)]
    if not texts:
        return [], []
    encoded = tokenizer(texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
    after = _appended(tokenizer)
    ids = iter(
        _one_bos(text, tokens[: len(tokens) - after], tokenizer)
        for text, tokens in zip(texts, encoded["input_ids"], strict=True)
    )
    made = [[next(ids) for _ in range(1 + len(parts))] for parts in beginnings]
    return [row[0] for row in made], [row[1:] for row in made]


def _appended(tokenizer: Tokenizer) -> int:
    """How many tokens the tokenizer puts after a text of its own accord: the text has an EOS already, and a
    prompt that ends with one would not be the beginning of the whole."""
    bare, dressed = (
        tokenizer(["a"], add_special_tokens=special, return_attention_mask=False)["input_ids"][0]
        for special in (False, True)
    )
    found = (at for at in range(len(dressed)) if dressed[at : at + len(bare)] == bare)
    return len(dressed) - len(bare) - next(found, len(dressed) - len(bare))


def _one_bos(text: str, tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """The tokens without the BOS that the tokenizer puts before a text which spells its own."""
    spelt = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokens[1:] if spelt and tokens[:2] == [tokenizer.bos_token_id] * 2 else tokens


def _settle(row: Rendered, tokens: Tokens, bos: int | None, max_length: int) -> dict[str, Any]:
    """Where the response begins, what the loss counts, and the prompt cut to fit. Raises BadRow."""
    ids = tokens.whole
    begin = _border(ids, tokens.prompt, bos)
    if len(ids) - max(begin, 1) < 1:
        raise BadRow(
            "empty response: no token of it can be learnt; the chat template may leave responses out"
        )
    counted = _counted(row, tokens, begin)
    counted[: int(ids[0] == bos)] = False  # nothing predicts it
    if not counted[1:].any():
        raise BadRow(
            "no token of the row counts in the loss: the chat template marks none as the assistant's"
        )
    unfit = _leave_out_first(counted, [*map(len, tokens.earlier[::2]), begin], max_length)
    several = row.written is not None or row.earlier
    start = min(begin, int(np.argmax(counted))) if several else begin
    more = {"unfit": unfit, "earlier": len(row.earlier) // 2}
    return {**_fitted(ids, counted, start, bos, max_length), **more}


def _leave_out_first(counted: np.ndarray[Any, Any], starts: Sequence[int], max_length: int) -> int:
    """How many answers, the first ones, are no longer counted, since with them the row does not fit: an
    answer is trained on as a whole or not at all.

    starts  of each answer
    """
    number = 0
    while (
        number < len(starts) - 1 and len(counted) > max_length and len(counted) - starts[number] >= max_length
    ):
        number += 1
    if number:
        counted[: starts[number]] = False
    return number


def _settle_ids(row: Tokenised, bos: int | None, max_length: int) -> dict[str, Any]:
    """As `_settle`, of a row that came as token ids."""
    counted = np.array(row.counted, bool)
    counted[: int(row.ids[0] == bos)] = False
    if not counted[1:].any():
        raise BadRow("no token of the row counts in the loss: its labels or masks leave all out")
    return _fitted(row.ids, counted, int(np.argmax(counted)), bos, max_length)


def _fitted(
    ids: list[int], counted: np.ndarray[Any, Any], begin: int, bos: int | None, max_length: int
) -> dict[str, Any]:
    """The row's columns, with what stands before `begin` cut to fit."""
    kept, _ = cut(ids, begin, bos, max_length)
    counted = counted[len(ids) - len(kept) :]
    if len(kept) < len(ids) and ids[0] == bos:
        counted[0] = False
    return _encoded(kept, counted, len(kept) < len(ids))


def _counted(row: Rendered, tokens: Tokens, begin: int) -> np.ndarray[Any, Any]:
    """(t,) bool: the tokens of the whole that the loss counts. Raises BadRow."""
    if row.earlier:
        return marked(tokens.whole, tokens.earlier, begin)
    if row.written is not None and len(row.written) != len(tokens.whole):
        raise BadRow(
            "the chat template marks another text than it renders; mend it, or leave assistant_only_loss out"
        )
    counted = np.ones(len(tokens.whole), bool) if row.written is None else np.array(row.written, bool)
    if row.completion:
        counted[:begin] = False
    return counted


def _border(ids: list[int], prompt_ids: list[int] | None, bos: int | None) -> int:
    """How many of the tokens are the prompt's. Raises BadRow."""
    if prompt_ids is None:
        return int(ids[0] == bos)
    if ids[: len(prompt_ids)] != prompt_ids:
        raise BadRow(
            "the prompt's tokens change when the response follows (the chat template renders the prompt"
            " alone differently, or tokens merge across the border); mend the template, or end the prompt"
            " with a newline"
        )
    if not prompt_ids:
        raise BadRow(
            "the prompt is empty and there is no BOS, so the response's first token cannot be learnt"
        )
    return len(prompt_ids)


def _encoded(ids: list[int], counted: np.ndarray[Any, Any], truncated: bool) -> dict[str, Any]:
    """The row's columns; the digest is of the tokens and of those that count."""
    prompt_length, tokens = int(np.argmax(counted)), np.array(ids, "<i4")
    content = np.array([prompt_length], "<i4").tobytes() + tokens.tobytes()
    if not counted[prompt_length:].all():
        content += np.packbits(counted).tobytes()
    return {
        "input_ids": tokens,
        "labels": np.where(counted, tokens, np.int32(IGNORED)),
        "prompt_length": prompt_length,
        "truncated": truncated,
        "digest": blake2b(content, digest_size=DIGEST_BYTES).digest(),
    }


def cut(ids: list[int], prompt_length: int, bos: int | None, max_length: int) -> tuple[list[int], int]:
    """ids and prompt_length with the prompt cut from the left to fit max_length; a leading BOS stays.

    Raises BadRow when the whole response and one token before it (BOS, or the prompt's last, without which
    the response's first token has nothing to be predicted from) do not fit.
    """
    if len(ids) <= max_length:
        return ids, prompt_length
    response = len(ids) - prompt_length
    room = max_length - response
    if room < 1:
        raise BadRow(
            f"the response alone is {response} tokens and max_length is {max_length}; raise max_length or"
            " shorten the response"
        )
    leading = int(ids[0] == bos)
    return ids[:leading] + ids[prompt_length - (room - leading) :], room
