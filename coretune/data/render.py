"""Examples -> text: what the chat template makes of a conversation, what stands without one, and what of it
counts in the loss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coretune.data.answers import answer_texts, refuse_unextending
from coretune.data.formats import Conversation, PlainText
from coretune.data.raw import BadRow, CorpusError, is_unicode
from coretune.data.template import harmless, refuse_long
from coretune.data.turns import Message, untrained_by

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
    if loss.completion_only is False and not loss.assistant_only:
        _refuse_flags(turns, "completion_only_loss: false counts all tokens")
    if not loss.assistant_only:
        return Rendered(whole, prompt, False, loss.completion_only is not False, earlier=earlier)
    completion = bool(loss.completion_only or (loss.completion_only is None and example.paired))
    if not completion:
        answers = [turn for turn in example.prompt if turn["role"] == "assistant"]
        _refuse_flags(answers, "assistant_only_loss cannot tell")
    return Rendered(whole, prompt, False, completion, written)


def _refuse_flags(turns: Sequence[Message], why: str) -> None:
    """BadRow for a turn that is flagged not to be trained on, and that the loss counts all the same."""
    for turn in turns:
        if (flag := untrained_by(turn)) is not None:
            raise BadRow(
                f"a turn has {flag}: it is not to be trained on, and {why}; set train_on: all instead"
            )


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
