"""Examples -> token ids: prompt and response told apart, prompts cut to fit, what cannot be learnt named.

    ids   [ BOS | prompt ........ | response ........ ]
                ^ cut here        ^ prompt_length      labels are -100 left of prompt_length

The ids are those of TRL's SFTTrainer for the same rows (its `prompt` and `completion` as messages under a
chat template, as text without one), except that a prompt whose tokens are not the beginning of the whole is
refused here and only warned of there: the model would be trained on another context than it is asked in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import jinja2
import numpy as np

from coretune.data.formats import BadRow, Conversation, PlainText, identity, interpret, source_of
from coretune.data.raw import CorpusError, is_unicode

DIGEST_BYTES = 16


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    bos_token_id: int | None
    eos_token: str | None

    def __call__(self, text: list[str], **settings: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, save_directory: str) -> Any: ...


def encode_batch(
    batch: Mapping[str, Sequence[Any]],
    tokenizer: Tokenizer,
    formats: Mapping[str, str],
    columns: Mapping[str, str],
    max_length: int,
) -> dict[str, list[Any]]:
    """For `datasets.map(batched=True)`: raw rows to tokenised rows, one for one.

    batch    columns record (JSON text), problem (or null), file, number; formats: file -> its format
    Returns  the columns of EMPTY; digest is blake2b of the tokenised content; where problem is not null the
             others hold nothing of meaning.
    """
    size = len(batch["record"])
    rows: list[dict[str, Any]] = [dict(EMPTY, problem=problem) for problem in batch["problem"]]
    rendered: list[tuple[str, str | None, bool]] = [("", None, False)] * size
    for index, row in enumerate(rows):
        if row["problem"] is None:
            try:
                record = json.loads(batch["record"][index])
                row["id"] = identity(record, columns, f"{batch['file'][index]}:{batch['number'][index]}")
                row["source"] = source_of(record, columns)
                format = formats[batch["file"][index]]
                example = interpret(record, format, columns, tokenizer.chat_template is not None)
                rendered[index] = render(example, tokenizer)
            except BadRow as bad:
                row["problem"] = str(bad)
    good = [index for index, row in enumerate(rows) if row["problem"] is None]
    for index, (ids, prompt_ids) in zip(good, _tokenise([rendered[i] for i in good], tokenizer), strict=True):
        try:
            rows[index].update(_settle(ids, prompt_ids, tokenizer.bos_token_id, max_length))
        except BadRow as bad:
            rows[index]["problem"] = str(bad)
    return {name: [row[name] for row in rows] for name in EMPTY}


EMPTY: Mapping[str, Any] = {
    "input_ids": [],
    "prompt_length": 0,
    "truncated": False,
    "id": "",
    "source": None,
    "digest": b"",
    "problem": None,
}


def render(example: Conversation | PlainText, tokenizer: Tokenizer) -> tuple[str, str | None, bool]:
    """(prompt and response as one text, the prompt alone or None, whether the tokenizer adds its BOS).

    Plain text ends with EOS. Raises BadRow; CorpusError for a tokenizer without EOS.
    """
    whole, prompt = (
        _render_turns(example, tokenizer) if isinstance(example, Conversation) else _join(example, tokenizer)
    )
    if not is_unicode(whole):
        raise BadRow(
            "the text holds half a surrogate pair (a \\ud8xx escape without its other half); remove it"
        )
    return whole, prompt, isinstance(example, PlainText)


def _render_turns(example: Conversation, tokenizer: Tokenizer) -> tuple[str, str]:
    settings = {"tokenize": False, **example.arguments}
    try:
        prompt = tokenizer.apply_chat_template(example.prompt, add_generation_prompt=True, **settings)
        whole = tokenizer.apply_chat_template(example.prompt + example.completion, **settings)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise BadRow(
            f"the chat template refuses the conversation ({error}); reorder or remove its turns"
        ) from None
    return whole, prompt


def _join(example: PlainText, tokenizer: Tokenizer) -> tuple[str, str | None]:
    if tokenizer.eos_token is None:
        raise CorpusError("the tokenizer has no EOS token to end plain text with; set tokenizer.eos_token")
    prompt = example.prompt or ""
    _refuse_fused_words(prompt, example.completion)
    whole = prompt + example.completion.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    return whole, example.prompt


def _refuse_fused_words(prompt: str, completion: str) -> None:
    """Without a chat template nothing stands between prompt and completion: two words would become one.

    Only letters with upper and lower case and digits count: the others' scripts write words without spaces.
    """
    if prompt and all(
        letter.isdigit() or letter.lower() != letter.upper() for letter in (prompt[-1], completion[0])
    ):
        fused = f"{prompt[-12:]}{completion[:12]}"
        raise BadRow(
            f"without a chat template prompt and completion would read {fused!r}; end the prompt with a"
            " newline, or set tokenizer.chat_template"
        )


def _tokenise(
    rendered: list[tuple[str, str | None, bool]], tokenizer: Tokenizer
) -> list[tuple[list[int], list[int] | None]]:
    """(ids of the whole, ids of the prompt alone or None) for each; one call a kind of text."""
    ids: dict[tuple[int, int], list[int]] = {}
    for special in (False, True):
        wanted = [
            (index, part, text)
            for index, (*texts, adds) in enumerate(rendered)
            for part, text in enumerate(texts)
            if adds == special and text is not None
        ]
        if wanted:
            texts = [text for _, _, text in wanted]
            encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
            for (index, part, _), tokens in zip(wanted, encoded["input_ids"], strict=True):
                ids[index, part] = tokens
    return [(ids[index, 0], ids.get((index, 1))) for index in range(len(rendered))]


def _settle(ids: list[int], prompt_ids: list[int] | None, bos: int | None, max_length: int) -> dict[str, Any]:
    """Where the response begins, and the prompt cut to fit. Raises BadRow."""
    if prompt_ids is None:
        prompt_length = int(ids[0] == bos)
    else:
        prompt_length = len(prompt_ids)
        if ids[:prompt_length] != prompt_ids:
            raise BadRow(
                "the prompt's tokens change when the response follows (the chat template renders the prompt"
                " alone differently, or tokens merge across the border); mend the template, or end the prompt"
                " with a newline"
            )
        if prompt_length == 0:
            raise BadRow(
                "the prompt is empty and there is no BOS, so the response's first token cannot be learnt"
            )
    if len(ids) - max(prompt_length, 1) < 1:
        raise BadRow(
            "empty response: no token of it can be learnt; the chat template may leave responses out"
        )
    length = len(ids)
    ids, prompt_length = cut(ids, prompt_length, bos, max_length)
    content = np.array([prompt_length, *ids], "<i4").tobytes()
    return {
        "input_ids": ids,
        "prompt_length": prompt_length,
        "truncated": len(ids) < length,
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
