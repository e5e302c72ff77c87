"""Examples -> token ids: prompt and response told apart, prompts cut to fit, what cannot be learnt named.

    ids   [ BOS | prompt ........ | response ........ ]
                ^ cut here        ^ labels are -100 to the left, or as `Loss` has it

The ids are those of TRL's SFTTrainer for the same rows (its `prompt` and `completion` as messages under a
chat template, as text without one), except that a prompt whose tokens are not the beginning of the whole is
refused here and only warned of there: the model would be trained on another context than it is asked in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from coretune.data.answers import answer_texts, marked, refuse_unextending
from coretune.data.formats import Conversation, PlainText, identity, interpret, source_of
from coretune.data.raw import BadRow, CorpusError, LeftOut, is_unicode
from coretune.data.template import harmless, refuse_long
from coretune.data.turns import Message, refuse_untrained

DIGEST_BYTES = 16
IGNORED = -100  # the label that transformers' losses leave out
TRAIN_ON = ("last", "all")  # assistant turns of a conversation
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # in a template, around what the assistant writes


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None

    def __call__(self, text: list[str], **settings: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **settings: Any) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def save_pretrained(self, save_directory: str) -> Any: ...


@dataclass(frozen=True)
class Loss:
    """Which tokens of a row the loss counts, as SFTConfig has it.

    completion_only  True: the response; False: the whole row; None: the response, and with assistant_only all
                     assistant turns of a row that is a conversation
    assistant_only   only what the chat template marks as written by the assistant
    every_turn       all assistant turns of a conversation, found by rendering it turn by turn
    """

    completion_only: bool | None = None
    assistant_only: bool = False
    every_turn: bool = False

    @classmethod
    def of(cls, train_on: str, completion_only: bool | None, assistant_only: bool) -> Loss:
        """train_on: last or all. CorpusError for keys that say different things."""
        if train_on not in TRAIN_ON:
            raise CorpusError(f"train_on is {train_on!r}; give {' or '.join(TRAIN_ON)}")
        if train_on == "all" and (completion_only is not None or assistant_only):
            key = "assistant_only_loss" if assistant_only else "completion_only_loss"
            raise CorpusError(f"train_on: all says what the loss counts, and so does {key}; give one of them")
        return cls(completion_only, assistant_only, train_on == "all")

    def refuse(self, tokenizer: Tokenizer) -> None:
        """CorpusError where the tokenizer's template marks nothing, or has no place for its answers."""
        template = tokenizer.chat_template
        if self.every_turn:
            refuse_unextending(tokenizer)
        if self.assistant_only and not MARKS.search(str(template)):
            raise CorpusError(
                "assistant_only_loss is true, and the tokenizer's chat template marks no assistant text "
                "({% generation %}); give one that does with chat_template_path, or leave it out"
            )


@dataclass(frozen=True)
class Rendered:
    """A row as text, and what its tokens are to become.

    whole      prompt and response
    prompt     the prompt alone; None: all of it is the response
    adds       whether the tokenizer adds its BOS
    completion the loss counts the response alone
    written    for each token of the whole, whether the template says that the assistant wrote it; None: not
               asked
    earlier    beginnings of the whole: up to an earlier answer, to its end, up to the next, and so on
    """

    whole: str
    prompt: str | None
    adds: bool
    completion: bool = True
    written: list[int] | None = None
    earlier: list[str] = field(default_factory=list)


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
                row["source"] = source_of(record, mapping)
                chat = tokenizer.chat_template is not None
                example = interpret(record, format, mapping, chat, loss.every_turn)
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
    "input_ids": [],
    "labels": [],
    "prompt_length": 0,
    "truncated": False,
    "id": "",
    "source": None,
    "digest": b"",
    "left_out": False,
    "problem": None,
}


def render(example: Conversation | PlainText, tokenizer: Tokenizer, loss: Loss) -> Rendered:
    """The example as text. Plain text ends with EOS.

    Raises BadRow; CorpusError for a tokenizer without EOS, and for a loss that needs what the row's format
    has not.
    """
    if isinstance(example, Conversation):
        found = _render_turns(example, tokenizer, loss)
    else:
        found = _join(example, tokenizer, loss)
    refuse_long(found.whole)
    if not is_unicode(found.whole) or not is_unicode(found.prompt or ""):
        raise BadRow(
            "the text holds half a surrogate pair (a \\ud8xx escape without its other half); remove it"
        )
    return found


def _render_turns(example: Conversation, tokenizer: Tokenizer, loss: Loss) -> Rendered:
    refuse_long(*(str(turn.get("content") or "") for turn in example.prompt + example.completion))
    arguments = harmless(example.arguments, tokenizer.chat_template)
    settings = {"tokenize": False, **arguments}
    turns = example.prompt + example.completion
    _refuse_unwritten(turns, tokenizer.chat_template)
    written = None
    try:
        prompt = tokenizer.apply_chat_template(example.prompt, add_generation_prompt=True, **settings)
        whole = tokenizer.apply_chat_template(turns, **settings)
        earlier = answer_texts(tokenizer, turns, example.earlier, settings)
        if loss.assistant_only:
            marks = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
            written = tokenizer.apply_chat_template(turns, **arguments, **marks)["assistant_masks"]
    except Exception as error:  # a template is a program: it may fail in any way on a row
        raise BadRow(
            f"the chat template refuses the conversation ({error}); reorder or remove its turns"
        ) from None
    if not loss.assistant_only:
        return Rendered(whole, prompt, False, loss.completion_only is not False, earlier=earlier)
    completion = bool(loss.completion_only or (loss.completion_only is None and example.paired))
    if not completion:
        _refuse_flags(example.prompt)
    return Rendered(whole, prompt, False, completion, written)


def _refuse_flags(turns: Sequence[Message]) -> None:
    """BadRow for an answer that is flagged not to be trained on, and that the template's marks take in."""
    for turn in turns:
        try:
            refuse_untrained(turn)
        except LeftOut as flagged:
            raise BadRow(
                f"{flagged}, and assistant_only_loss cannot tell; set train_on: all instead"
            ) from None


def _refuse_unwritten(turns: Sequence[Message], template: Any) -> None:
    """BadRow for tool calls that the template leaves out: an empty answer would be trained on."""
    if any(turn.get("tool_calls") for turn in turns) and "tool_calls" not in str(template):
        raise BadRow(
            "a turn has tool calls, and the tokenizer's chat template does not write them; give one that "
            "does (training.chat_template_path), or write the calls into the turn's text"
        )


def _join(example: PlainText, tokenizer: Tokenizer, loss: Loss) -> Rendered:
    if tokenizer.eos_token is None:
        raise CorpusError("the tokenizer has no EOS token to end plain text with; set tokenizer.eos_token")
    if loss.assistant_only:
        raise CorpusError(
            "assistant_only_loss is true, and the rows are texts, not conversations; leave it out"
        )
    if loss.completion_only and example.prompt is None:
        raise CorpusError(
            "completion_only_loss is true, and the rows are texts without a prompt; leave it out"
        )
    refuse_long(example.prompt, example.completion)
    prompt = example.prompt or ""
    _refuse_fused_words(prompt, example.completion)
    whole = prompt + example.completion.removesuffix(tokenizer.eos_token) + tokenizer.eos_token
    return Rendered(whole, example.prompt, True, loss.completion_only is not False)


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


def _tokenise(rendered: list[Rendered], tokenizer: Tokenizer) -> list[Tokens]:
    """One call a kind of text."""
    ids: dict[tuple[int, int], list[int]] = {}
    for special in (False, True):
        wanted = [
            (index, part, text)
            for index, row in enumerate(rendered)
            for part, text in enumerate((row.whole, row.prompt, *row.earlier))
            if row.adds == special and text is not None
        ]
        if wanted:
            texts = [text for _, _, text in wanted]
            encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
            after = _appended(tokenizer) if special else 0
            for (index, part, text), tokens in zip(wanted, encoded["input_ids"], strict=True):
                tokens = tokens[: len(tokens) - after]
                ids[index, part] = _one_bos(text, tokens, tokenizer) if special else tokens
    return [
        Tokens(ids[at, 0], ids.get((at, 1)), [ids[at, 2 + part] for part in range(len(row.earlier))])
        for at, row in enumerate(rendered)
    ]


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
    several = row.written is not None or row.earlier
    kept, _ = cut(ids, min(begin, int(np.argmax(counted))) if several else begin, bos, max_length)
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
    prompt_length = int(np.argmax(counted))
    content = np.array([prompt_length, *ids], "<i4").tobytes()
    if not counted[prompt_length:].all():
        content += np.packbits(counted).tobytes()
    return {
        "input_ids": ids,
        "labels": np.where(counted, ids, IGNORED).tolist(),
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
