"""The turns of a conversation, from the ways they are written in, and which of them are trained on.

    {role, content}                content: a text, a list of text parts, or null beside tool_calls
    {from, value}                  sharegpt, with its function_call and observation turns
    weight, loss, train, training  of a turn: 0 or false, it is not trained on

`train_on: last` trains on the last turn, `train_on: all` on every assistant turn that no flag takes out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from coretune.data.raw import BadRow, LeftOut, kind

Message = dict[str, Any]

#: Keys of a turn that say whether it is trained on: 0 or false, it is not.
TURN_FLAGS = ("weight", "loss", "train", "training")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def turns_of(value: Any, column: str) -> list[Message]:
    """The turns of a column as {role, content, ...}. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow(f"`{column}` is {kind(value)}, not a list of turns")
    return [_turn(turn, f"`{column}` turn {number}") for number, turn in enumerate(value, 1)]


def _turn(turn: Any, where: str) -> Message:
    """sharegpt's {from, value} is recognised by its keys, whatever the column."""
    sharegpt = isinstance(turn, dict) and turn.get("from") is not None
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
        raise BadRow(f"{where} is not {{{role_key}: ..., {content_key}: ...}}")
    content = turn.get(content_key)
    if isinstance(content, list):
        turn = {**turn, content_key: _joined(content, where)}
    elif not isinstance(content, str) and not (turn.get("tool_calls") and content is None):
        raise BadRow(f"{where}: `{content_key}` is {kind(content)}, not text")
    return _of_sharegpt(turn, where) if sharegpt else turn


def _joined(parts: list[Any], where: str) -> str:
    """The text of {type: text, text: ...} parts, one after the other as chat templates write them."""
    texts = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, dict) and part.get("type", "text") == "text":
            part = part.get("text")
        if not isinstance(part, str):
            what = part["type"] if isinstance(part, dict) else kind(part)
            raise BadRow(f"{where}: part {number} of the content is {what!r}, and only text is trained on")
        texts.append(part)
    return "".join(texts)


def _of_sharegpt(turn: Message, where: str) -> Message:
    role = SHAREGPT_ROLES.get(turn["from"])
    if role is None:
        raise BadRow(f"{where} is from {turn['from']!r}; known are {', '.join(SHAREGPT_ROLES)}")
    more = {key: value for key, value in turn.items() if key not in ("from", "value", "role", "content")}
    if turn["from"] == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(turn["value"], where), **more}
    return {"role": role, "content": turn["value"], **more}


def _calls(text: str, where: str) -> list[dict[str, Any]]:
    """`{"name": ..., "arguments": {...}}`, or a list of them, as tool_calls."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise BadRow(f"{where}: the function_call is not valid JSON ({error})") from None
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        if not (isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call):
            raise BadRow(f"{where}: a function_call is {{name: ..., arguments: {{...}}}}, or a list of them")
    if not calls:
        raise BadRow(f"{where}: the function_call calls nothing")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls
    ]


def trained_turns(turns: Sequence[Message], first: int) -> list[int]:
    """Places of the assistant turns from `first` on that no flag takes out, at least one.

    Raises BadRow; LeftOut where flags take out all.
    """
    answers = [place for place in range(first, len(turns)) if turns[place]["role"] == "assistant"]
    for place in range(first, len(turns)):
        if place not in answers and any(turns[place].get(key) for key in TURN_FLAGS):
            raise BadRow(
                f"turn {place + 1} is from {turns[place]['role']!r} and flagged to be trained on, and only "
                "the assistant's turns are; remove the flag"
            )
    if not answers:
        raise BadRow("no turn is from the assistant, so nothing can be trained on")
    trained = [place for place in answers if _is_trained(turns[place])]
    if not trained:
        raise LeftOut("every assistant turn is flagged not to be trained on (weight: 0, train: false)")
    if trained[0] == 0:
        raise BadRow("the first turn is the assistant's, and nothing stands before it; give it weight: 0")
    for place in trained:
        refuse_empty(turns[place], f"turn {place + 1}")
    return trained


def _is_trained(turn: Message) -> bool:
    flags = [turn[key] for key in TURN_FLAGS if turn.get(key) is not None]
    for key in TURN_FLAGS:
        if turn.get(key) not in (None, 0, 1):
            raise BadRow(
                f"a turn has {key}: {json.dumps(turn[key])}, and a turn is trained on as a whole or not at "
                "all: give 0 or 1"
            )
    return all(flags)


def refuse_empty(turn: Message, name: str) -> None:
    """BadRow for a response without text and without tool calls."""
    if not (turn.get("content") or "").strip() and not turn.get("tool_calls"):
        raise BadRow(f"empty response: {name} holds no text")


def refuse_untrained(turn: Message) -> None:
    """LeftOut for a turn of the response that says it is not to be trained on; BadRow where in part."""
    if turn["role"] == "assistant" and (flag := untrained_by(turn)) is not None:
        raise LeftOut(f"the response has {flag}: it is not to be trained on")


def untrained_by(turn: Message) -> str | None:
    """The flag of a turn by which it is not trained on; None: it has none. BadRow where in part."""
    if _is_trained(turn):
        return None
    key = next(key for key in TURN_FLAGS if turn.get(key) is not None and not turn[key])
    return f"{key}: {json.dumps(turn[key])}"
