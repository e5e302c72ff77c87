"""A raw record -> what the model is given and what it should answer.

    tokens              input_ids, and labels or masks             where labels or masks say (`tokenised.py`)
    messages            messages: [{role, content}, ...]           the last turn is the response
    prompt/completion   prompt, completion: texts, or two lists of messages
    text                text                                       all of it is the response
    alpaca              instruction, input (may be left out), output
    sharegpt            conversations: [{from, value}, ...]        the last turn is the response

Beside them: weight (multiplies the loss), system (a text, the first turn), history ([[question, answer],
...], turns before a prompt that is a text), tools and chat_template_kwargs for the template. A row that says
that it is not to be trained on (weight: 0, a turn's weight: 0, KTO's label: false) is left out and counted.

A tokenizer with a chat template gets texts as a user turn and an assistant turn. Without one, prompt and
completion are joined as they stand and alpaca rows are written under the headings of `ALPACA_PLAIN`.

[choice] In a conversation of several turns only the last assistant turn is trained on unless all are asked
for (train_on: all, `turns.py`): an example is then one prompt and one response for every signal and method.
[choice] alpaca under a chat template: instruction, blank line, input. Without one, system stands above the
headings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coretune.data.raw import BadRow, CorpusError, LeftOut, is_unicode, kind
from coretune.data.tokenised import MASKS, Tokenised, tokenised
from coretune.data.turns import Message, refuse_empty, refuse_untrained, trained_turns, turns_of

#: Format -> the columns it cannot do without, in the order of preference when a file fits several
#: (published alpaca files carry a ready-made `text` too; chat files often repeat the first turn as `prompt`).
FORMATS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("input_ids",),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
TOKEN_COLUMNS = ("labels", *MASKS, "attention_mask")
EXTRA: Mapping[str, tuple[str, ...]] = {"alpaca": ("input",)}
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
#: Format -> the columns that it uses where a row has them.
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "messages": ("system", *TEMPLATE_COLUMNS),
    "sharegpt": ("system", *TEMPLATE_COLUMNS),
    "prompt/completion": ("system", "history", "label", *TEMPLATE_COLUMNS),
    "alpaca": ("system", "history", *TEMPLATE_COLUMNS),
    "text": (),
    "tokens": TOKEN_COLUMNS,
}
OPTIONAL_COLUMNS = ("input", "id", "source", "weight", "system", "history", *TEMPLATE_COLUMNS, *TOKEN_COLUMNS)
KNOWN_COLUMNS = (*(name for required in FORMATS.values() for name in required), *OPTIONAL_COLUMNS)

ALPACA_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA_PLAIN_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template; `arguments` are what the row hands to the template (its tools).

    paired   the prompt is a column of turns: none of them is trained on
    earlier  places in `prompt` of the answers that are trained on too (train_on: all)
    """

    prompt: list[Message]
    completion: list[Message]
    arguments: dict[str, Any] = field(default_factory=dict)
    paired: bool = field(default=False, compare=False)
    earlier: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PlainText:
    """Text for a tokenizer without a chat template; prompt None: the whole text is the response."""

    prompt: str | None
    completion: str


def listed(names: Iterable[str]) -> str:
    """The first names, for a message."""
    shown = list(names)
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") or "(none)"


def interpret(
    record: Mapping[str, Any], format: str, columns: Mapping[str, str], chat: bool, every: bool = False
) -> Conversation | PlainText | Tokenised:
    """The example of a record.

    chat   the tokenizer has a chat template
    every  all assistant turns of a conversation are trained on, not the last alone

    Raises BadRow; CorpusError for a conversation without a chat template, which no other row would mend.
    """
    if format == "tokens":
        return tokenised(record, columns)
    example = _read(record, format, columns, chat)
    if isinstance(example, PlainText):
        return example
    return _of_every_turn(example) if every else _of_last_turn(example)


def _read(
    record: Mapping[str, Any], format: str, columns: Mapping[str, str], chat: bool
) -> Conversation | PlainText:
    if format in ("messages", "sharegpt"):
        return _conversation(_turns(record, columns, FORMATS[format][0]), record, columns, chat)
    if format == "text":
        return PlainText(None, _response(record, columns, "text"))
    if format == "alpaca":
        return _alpaca(record, columns, chat)
    _refuse_undesired(record, columns)
    return _prompt_completion(record, columns, chat)


def identity(record: Mapping[str, Any], columns: Mapping[str, str], place_name: str) -> str:
    """The row's own `id`, as text, or else the name made from its place. Raises BadRow."""
    column = columns.get("id", "id")
    if column not in record and "id" not in columns:
        return place_name
    value = _value(record, columns, "id")
    if isinstance(value, float):
        raise BadRow(
            f"`{column}` is {value!r}, a floating-point number; ids are text or whole numbers (pandas makes "
            "such numbers "
            'of a whole column with gaps: fill them and write it with astype("int64"), or name another '
            "column)"
        )
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise BadRow(
            f"`{column}` is {kind(value) if value != '' else 'empty'}; an id is text or a whole number"
        )
    return _written(str(value), column)


def source_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """Where the user says the row is from: `source`, else `category`; None when it does not say."""
    column = columns.get("source", "source" if "source" in record else "category")
    value = record.get(column)
    return None if value is None else _written(str(value), column)


def weight_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> float:
    """What multiplies the row's loss: its `weight`, 1 where it has none. Raises BadRow; LeftOut for 0."""
    column = columns.get("weight", "weight")
    if column not in record:
        return 1.0
    value = record[column]
    try:
        weight = (
            float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
        )
    except (ValueError, OverflowError):
        weight = -1.0
    if weight == 0:
        raise LeftOut(f"`{column}` is 0: the row is not to be trained on")
    if not 0 < weight < math.inf:
        raise BadRow(
            f"`{column}` is {value!r:.40}, and it multiplies the row's loss: give a number above 0, or "
            "rename the column if it means something else"
        )
    return weight


def _written(text: str, column: str) -> str:
    if not is_unicode(text):
        raise BadRow(
            f"`{column}` holds half a surrogate pair (a \\ud8xx escape without its other half); remove it"
        )
    return text


def _value(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Any:
    column = columns.get(name, name)
    if column not in record:
        raise BadRow(f"`{column}` is missing; the row has {listed(record)}")
    if record[column] is None:
        raise BadRow(f"`{column}` is null")
    return record[column]


def _text(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    value = _value(record, columns, name)
    if not isinstance(value, str):
        column = columns.get(name, name)
        turns = isinstance(value, list) and all(isinstance(turn, dict) for turn in value)
        hint = (
            f" (whole conversations: columns: {{messages: {column}}})"
            if turns and name == "completion"
            else ""
        )
        raise BadRow(f"`{column}` is {kind(value)}, not text{hint}")
    return value


def _response(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    text = _text(record, columns, name)
    if not text.strip():
        raise BadRow(f"empty response: `{columns.get(name, name)}` holds no text")
    return text


def is_verdict(label: object) -> bool:
    """Whether a `label` is KTO's: true, false, or these as text. A number is a class, and not used."""
    return isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))


def _refuse_undesired(record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """LeftOut for a completion that KTO's `label` says is a bad one."""
    label = record.get("label")
    if is_verdict(label) and "label" not in columns.values() and str(label).strip().lower() == "false":
        raise LeftOut("`label` is false: the completion is an undesired one (KTO)")


def _exchange(
    prompt: str, completion: str, record: Mapping[str, Any], columns: Mapping[str, str]
) -> Conversation:
    """A question and its answer, after the row's system text and history."""
    earlier = _history(record, columns)
    turns = [*earlier, {"role": "user", "content": prompt}]
    return Conversation(
        _with_system(turns, record, columns),
        [{"role": "assistant", "content": completion}],
        _arguments(record, columns),
    )


def _prompt_completion(
    record: Mapping[str, Any], columns: Mapping[str, str], chat: bool
) -> Conversation | PlainText:
    prompt, completion = _value(record, columns, "prompt"), _value(record, columns, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        if _history(record, columns):
            raise BadRow(
                f"`{columns.get('history', 'history')}` stands beside a list of turns; put it into the list"
            )
        turns = _turns(record, columns, "prompt") + _turns(record, columns, "completion")
        return _conversation(turns, record, columns, chat, len(completion), True)
    prompt, completion = _text(record, columns, "prompt"), _response(record, columns, "completion")
    if chat:
        return _exchange(prompt, completion, record, columns)
    if _system(record, columns):
        raise BadRow(
            f"`{columns.get('system', 'system')}` needs a chat template, and the tokenizer has none; put it "
            "into the "
            "prompt, or set tokenizer.chat_template"
        )
    _refuse_history(record, columns)
    return PlainText(prompt, completion)


def _alpaca(record: Mapping[str, Any], columns: Mapping[str, str], chat: bool) -> Conversation | PlainText:
    instruction, output = _text(record, columns, "instruction"), _response(record, columns, "output")
    given = _text(record, columns, "input") if record.get(columns.get("input", "input")) is not None else ""
    if chat:
        return _exchange(f"{instruction}\n\n{given}" if given else instruction, output, record, columns)
    _refuse_history(record, columns)
    system = _system(record, columns)
    heading = ALPACA_PLAIN_INPUT if given else ALPACA_PLAIN
    whole = (f"{system}\n\n" if system else "") + heading.format(instruction=instruction, input=given)
    return PlainText(whole, output)


def _system(record: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The row's system text; "" when it has none."""
    if record.get(columns.get("system", "system")) is None:
        return ""
    text = _text(record, columns, "system")
    return text if text.strip() else ""


def _with_system(
    turns: list[Message], record: Mapping[str, Any], columns: Mapping[str, str]
) -> list[Message]:
    system = _system(record, columns)
    if not system:
        return turns
    if turns and turns[0]["role"] == "system":
        if turns[0].get("content") == system:
            return turns
        raise BadRow(
            f"`{columns.get('system', 'system')}` and a system turn say two things; keep one of them"
        )
    return [{"role": "system", "content": system}, *turns]


def _history(record: Mapping[str, Any], columns: Mapping[str, str]) -> list[Message]:
    """Earlier questions and answers as turns."""
    column = columns.get("history", "history")
    value = record.get(column)
    if value is None or value in ("", "[]"):
        return []
    pairs: list[Any] = value if isinstance(value, list) else [None]
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise BadRow(f"`{column}` is not [[question, answer], ...]; write it so, or the row as messages")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _refuse_history(record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    if _history(record, columns):
        raise BadRow(
            f"`{columns.get('history', 'history')}` needs a chat template, and the tokenizer has none; set "
            "tokenizer.chat_template"
        )


def _turns(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> list[Message]:
    return turns_of(_value(record, columns, name), columns.get(name, name))


def _conversation(
    turns: list[Message],
    record: Mapping[str, Any],
    columns: Mapping[str, str],
    chat: bool,
    answered: int = 1,
    paired: bool = False,
) -> Conversation:
    """`turns` as prompt and response; the response is the last `answered` turns."""
    if not chat:
        raise CorpusError(
            "the rows are conversations and the tokenizer has no chat template; set tokenizer.chat_template,"
            " or use rows with prompt and completion as texts"
        )
    if len(turns) <= answered or not answered:
        raise BadRow(
            f"{len(turns)} turns are no conversation; it needs a turn before the response and the response"
        )
    prompt = _with_system(turns[:-answered], record, columns)
    return Conversation(prompt, turns[-answered:], _arguments(record, columns), paired)


def _of_last_turn(example: Conversation) -> Conversation:
    last = example.completion[-1]
    if last["role"] != "assistant":
        raise BadRow(
            f"the last turn is from {last['role']!r}; a conversation must end with the assistant's response"
        )
    refuse_empty(last, "the last turn")
    for turn in example.completion:
        refuse_untrained(turn)
    return example


def _of_every_turn(example: Conversation) -> Conversation:
    """The response is the last turn that is trained on: what follows it changes no loss."""
    turns = example.prompt + example.completion
    *earlier, last = trained_turns(turns, len(example.prompt) if example.paired else 0)
    return replace(example, prompt=turns[:last], completion=[turns[last]], earlier=earlier)


def _arguments(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """`chat_template_kwargs` and `tools`, the columns TRL hands to the template; null is none."""
    arguments = _structure(record, columns, "chat_template_kwargs")
    if not isinstance(arguments, (dict, type(None))):
        raise BadRow(f"`chat_template_kwargs` is {kind(arguments)}, not an object")
    tools = _structure(record, columns, "tools")
    return {**(arguments or {}), **({} if tools is None else {"tools": tools})}


def _structure(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Any:
    """A list or object, or, as tables hold it, that as JSON; None where the cell is empty."""
    column = columns.get(name, name)
    value = record.get(column)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"`{column}` is not valid JSON ({error})") from None
