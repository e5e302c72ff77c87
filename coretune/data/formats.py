"""A raw record -> what the model is given and what it should answer.

    messages            messages: [{role, content}, ...]           the last turn is the response
    prompt/completion   prompt, completion: texts, or two lists of messages
    text                text                                       all of it is the response
    alpaca              instruction, input (may be left out), output
    sharegpt            conversations: [{from, value}, ...]        the last turn is the response

A tokenizer with a chat template gets texts as a user turn and an assistant turn. Without one, prompt and
completion are joined as they stand and alpaca rows are written under the headings of `ALPACA_PLAIN`.

[choice] In a conversation of several turns only the last assistant turn is trained on: an example is then one
prompt and one response for every signal and every method, and its loss does not mix easy early turns into it.
[choice] alpaca under a chat template: instruction, blank line, input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from coretune.data.raw import CorpusError, kind

#: Format -> the columns it cannot do without, in the order of preference when a file fits several
#: (published alpaca files carry a ready-made `text` too; chat files often repeat the first turn as `prompt`).
FORMATS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
EXTRA: Mapping[str, tuple[str, ...]] = {"alpaca": ("input",)}
OPTIONAL_COLUMNS = ("input", "id", "source", "tools", "chat_template_kwargs")
KNOWN_COLUMNS = (*(name for required in FORMATS.values() for name in required), *OPTIONAL_COLUMNS)

ALPACA_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA_PLAIN_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

Message = dict[str, Any]


class BadRow(Exception):
    """This row cannot be trained on; the text is the reason."""


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template; `arguments` are what the row hands to the template (its tools)."""

    prompt: list[Message]
    completion: list[Message]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlainText:
    """Text for a tokenizer without a chat template; prompt None: the whole text is the response."""

    prompt: str | None
    completion: str


def candidates(columns: Mapping[str, str]) -> list[str]:
    """The formats that use all of a `columns` mapping {our name: the file's column}; CorpusError if none."""
    for name in columns:
        if name not in KNOWN_COLUMNS:
            near = get_close_matches(name, KNOWN_COLUMNS, 1, 0.0)[0]
            raise CorpusError(
                f"columns has the unknown key {name!r}, nearest is {near!r}; known: {_list(KNOWN_COLUMNS)}"
            )
    mapped = set(columns) - set(OPTIONAL_COLUMNS) | set(columns) & {"input"}
    fitting = [name for name, required in FORMATS.items() if mapped <= {*required, *EXTRA.get(name, ())}]
    if not fitting:
        raise CorpusError(
            f"columns names {_list(columns)}, which no one format uses together; give those of one format"
        )
    return fitting


def filled_columns(record: Mapping[str, Any], columns: Mapping[str, str]) -> frozenset[str]:
    """Which of our columns a row fills (present and not null)."""
    return frozenset(name for name in KNOWN_COLUMNS if record.get(columns.get(name, name)) is not None)


def recognise(
    file: str, filled: Counter[frozenset[str]], found: Iterable[str], columns: Mapping[str, str]
) -> str:
    """The format of a file; CorpusError when it has none.

    filled  how many rows fill which of our columns; found: all column names of the file, for the message.
    The first format that at least half of the rows fill, else the one that most rows fill [choice: one odd
    row must neither decide for a file nor be read as something else than its neighbours].
    """
    fitting = {
        name: sum(count for names, count in filled.items() if set(FORMATS[name]) <= names)
        for name in candidates(columns)
    }
    most = max(fitting.values())
    if most == 0:
        names = sorted(found)
        raise CorpusError(
            f"{file}: no known format in its columns {_list(names)}; {_nearest(names, columns)}"
        )
    enough = min(most, -(-filled.total() // 2))
    return next(name for name, count in fitting.items() if count >= enough)


def _nearest(found: list[str], columns: Mapping[str, str]) -> str:
    """Which format is closest, what it lacks, and how to say which column is which."""

    def closeness(format: str) -> tuple[float, float]:
        wanted = [columns.get(name, name) for name in FORMATS[format]]
        alike = [
            max((SequenceMatcher(None, want, name).ratio() for name in found), default=0.0) for want in wanted
        ]
        return sum(want in found for want in wanted) / len(wanted), sum(alike) / len(wanted)

    format = max(candidates(columns), key=closeness)
    lacking = [columns.get(name, name) for name in FORMATS[format] if columns.get(name, name) not in found]
    empty = [columns.get(name, name) for name in FORMATS[format]]
    lacks = f"lacks {_list(lacking)}" if lacking else f"needs {_list(empty)} not to be null"
    mapping = ", ".join(f"{name}: ..." for name in FORMATS[format])
    return f"nearest is {format}, which {lacks}; say which column is which with columns: {{{mapping}}}"


def _list(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "") or "(none)"


def interpret(
    record: Mapping[str, Any], format: str, columns: Mapping[str, str], chat: bool
) -> Conversation | PlainText:
    """The example a record stands for. `chat`: the tokenizer has a chat template.

    Raises BadRow; CorpusError for a conversation without a chat template, which no other row would mend.
    """
    if format in ("messages", "sharegpt"):
        return _conversation(_turns(record, columns, FORMATS[format][0]), record, columns, chat)
    if format == "text":
        return PlainText(None, _response(record, columns, "text"))
    if format == "alpaca":
        return _alpaca(record, columns, chat)
    return _prompt_completion(record, columns, chat)


def identity(record: Mapping[str, Any], columns: Mapping[str, str], place_name: str) -> str:
    """The row's own `id`, as text, or else the name made from its place. Raises BadRow."""
    column = columns.get("id", "id")
    if column not in record and "id" not in columns:
        return place_name
    value = _value(record, columns, "id")
    if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
        raise BadRow(
            f"`{column}` is {kind(value) if value != '' else 'empty'}; an id is text or a whole number"
        )
    return str(value)


def source_of(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """Where the user says the row is from: `source`, else `category`; None when it does not say."""
    value = (
        record.get(columns["source"]) if "source" in columns else record.get("source", record.get("category"))
    )
    return None if value is None else str(value)


def _value(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Any:
    column = columns.get(name, name)
    if column not in record:
        raise BadRow(f"`{column}` is missing; the row has {_list(record)}")
    if record[column] is None:
        raise BadRow(f"`{column}` is null")
    return record[column]


def _text(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    value = _value(record, columns, name)
    if not isinstance(value, str):
        raise BadRow(f"`{columns.get(name, name)}` is {kind(value)}, not text")
    return value


def _response(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    text = _text(record, columns, name)
    if not text.strip():
        raise BadRow(f"empty response: `{columns.get(name, name)}` holds no text")
    return text


def _exchange(prompt: str, completion: str) -> Conversation:
    return Conversation([{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}])


def _prompt_completion(
    record: Mapping[str, Any], columns: Mapping[str, str], chat: bool
) -> Conversation | PlainText:
    prompt, completion = _value(record, columns, "prompt"), _value(record, columns, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = _turns(record, columns, "prompt") + _turns(record, columns, "completion")
        return _conversation(turns, record, columns, chat, len(completion))
    prompt, completion = _text(record, columns, "prompt"), _response(record, columns, "completion")
    return _exchange(prompt, completion) if chat else PlainText(prompt, completion)


def _alpaca(record: Mapping[str, Any], columns: Mapping[str, str], chat: bool) -> Conversation | PlainText:
    instruction, output = _text(record, columns, "instruction"), _response(record, columns, "output")
    given = _text(record, columns, "input") if record.get(columns.get("input", "input")) is not None else ""
    if chat:
        return _exchange(f"{instruction}\n\n{given}" if given else instruction, output)
    heading = ALPACA_PLAIN_INPUT if given else ALPACA_PLAIN
    return PlainText(heading.format(instruction=instruction, input=given), output)


def _turns(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> list[Message]:
    column, value = columns.get(name, name), _value(record, columns, name)
    if not isinstance(value, list):
        raise BadRow(f"`{column}` is {kind(value)}, not a list of turns")
    return [_turn(turn, f"`{column}` turn {number}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, where: str) -> Message:
    """One turn as {role, content}; sharegpt's {from, value} is told by its keys, whatever the column."""
    sharegpt = isinstance(turn, dict) and turn.get("from") is not None
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
        raise BadRow(f"{where} is not {{{role_key}: ..., {content_key}: ...}}")
    if not isinstance(turn.get(content_key), str) and not (
        turn.get("tool_calls") and turn.get(content_key) is None
    ):
        raise BadRow(f"{where}: `{content_key}` is {kind(turn.get(content_key))}, not text")
    if not sharegpt:
        return turn
    if turn["from"] not in SHAREGPT_ROLES:
        raise BadRow(f"{where} is from {turn['from']!r}; known are {_list(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}


def _conversation(
    turns: list[Message], record: Mapping[str, Any], columns: Mapping[str, str], chat: bool, answered: int = 1
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
    last = turns[-1]
    if last["role"] != "assistant":
        raise BadRow(
            f"the last turn is from {last['role']!r}; a conversation must end with the assistant's response"
        )
    if not (last.get("content") or "").strip() and not last.get("tool_calls"):
        raise BadRow("empty response: the last turn holds no text")
    return Conversation(turns[:-answered], turns[-answered:], _arguments(record, columns))


def _arguments(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """`chat_template_kwargs` and `tools`, the columns TRL hands to the template; null is none."""
    arguments = record.get(columns.get("chat_template_kwargs", "chat_template_kwargs"))
    if not isinstance(arguments, (dict, type(None))):
        raise BadRow(f"`chat_template_kwargs` is {kind(arguments)}, not an object")
    tools = record.get(columns.get("tools", "tools"))
    return {**(arguments or {}), **({} if tools is None else {"tools": _tools(tools)})}


def _tools(tools: Any) -> Any:
    """Tool schemas: a list, or, as parquet files hold them, that list as JSON."""
    try:
        return json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise BadRow(f"`tools` is not valid JSON ({error.msg} at column {error.colno})") from None
