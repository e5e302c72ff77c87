"""What each format means, which one a file is in, and what is said of rows that mean nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from coretune.data.formats import BadRow, Conversation, PlainText, identity, interpret, source_of
from coretune.data.raw import CorpusError
from coretune.data.recognise import candidates, filled_columns, recognise

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def format_of(rows: list[dict[str, Any]], columns: dict[str, str] | None = None) -> str:
    filled = Counter(filled_columns(row, columns or {}) for row in rows)
    return recognise("f", filled, {name for row in rows for name in row}, columns or {})


@pytest.mark.parametrize(
    ("row", "format", "meaning"),
    [
        ({"messages": [SYSTEM, USER, ASSISTANT]}, "messages", Conversation([SYSTEM, USER], [ASSISTANT])),
        (
            {"messages": [USER, {"role": "assistant", "content": "early"}, USER, ASSISTANT]},
            "messages",
            Conversation([USER, {"role": "assistant", "content": "early"}, USER], [ASSISTANT]),
        ),
        ({"prompt": "Q", "completion": "A"}, "prompt/completion", Conversation([USER], [ASSISTANT])),
        (
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            "prompt/completion",
            Conversation([SYSTEM, USER], [ASSISTANT]),
        ),
        ({"text": "A"}, "text", PlainText(None, "A")),
        ({"instruction": "Q", "output": "A"}, "alpaca", Conversation([USER], [ASSISTANT])),
        ({"instruction": "Q", "input": None, "output": "A"}, "alpaca", Conversation([USER], [ASSISTANT])),
        (
            {"instruction": "Q", "input": "I", "output": "A"},
            "alpaca",
            Conversation([{"role": "user", "content": "Q\n\nI"}], [ASSISTANT]),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            "sharegpt",
            Conversation([SYSTEM, USER], [ASSISTANT]),
        ),
        ({"conversations": [USER, ASSISTANT]}, "sharegpt", Conversation([USER], [ASSISTANT])),
    ],
)
def test_formats_are_recognised_and_read(row: dict[str, Any], format: str, meaning: object) -> None:
    assert format_of([row]) == format
    assert interpret(row, format, {}, chat=True) == meaning


def test_without_a_chat_template_texts_are_joined_as_documented() -> None:
    row = {"prompt": "Q", "completion": "A"}
    assert interpret(row, "prompt/completion", {}, chat=False) == PlainText("Q", "A")
    row = {"instruction": "Do", "output": "A"}
    assert interpret(row, "alpaca", {}, chat=False) == PlainText(
        "### Instruction:\nDo\n\n### Response:\n", "A"
    )
    row["input"] = "with {braces}"
    assert interpret(row, "alpaca", {}, chat=False) == PlainText(
        "### Instruction:\nDo\n\n### Input:\nwith {braces}\n\n### Response:\n", "A"
    )


def test_conversation_without_a_chat_template_is_refused_for_the_file() -> None:
    for row, format in (
        ({"messages": [USER, ASSISTANT]}, "messages"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt/completion"),
    ):
        with pytest.raises(
            CorpusError, match=r"no chat template; set tokenizer.chat_template, or use rows with"
        ):
            interpret(row, format, {}, chat=False)


def test_tools_and_template_arguments_are_handed_on() -> None:
    row = {
        "messages": [USER, ASSISTANT],
        "tools": '[{"name": "f"}]',
        "chat_template_kwargs": {"think": False},
    }
    example = interpret(row, "messages", {}, chat=True)
    assert isinstance(example, Conversation)
    assert example.arguments == {"think": False, "tools": [{"name": "f"}]}


def test_columns_say_which_column_is_which() -> None:
    columns = {"prompt": "q", "completion": "a", "id": "key", "source": "kind"}
    row = {"q": "Q", "a": "A", "key": 7, "kind": "k", "text": "other", "id": "not this"}
    assert format_of([row], columns) == "prompt/completion"
    assert interpret(row, "prompt/completion", columns, chat=True) == Conversation([USER], [ASSISTANT])
    assert identity(row, columns, "f:1") == "7"
    assert source_of(row, columns) == "k"
    with pytest.raises(BadRow, match="`key` is missing"):
        identity({"q": "Q"}, columns, "f:1")


def test_only_id_and_source_may_be_mapped() -> None:
    assert format_of([{"text": "x", "key": "k"}], {"id": "key"}) == "text"


def test_bad_columns_setting() -> None:
    with pytest.raises(CorpusError, match="unknown key 'completoin', nearest is 'completion'"):
        candidates({"prompt": "q", "completoin": "a"})
    with pytest.raises(CorpusError, match="columns names prompt, text, which no one format uses together"):
        candidates({"prompt": "q", "text": "a"})


@pytest.mark.parametrize(
    ("row", "columns", "says"),
    [
        (
            {"prompt": "Q", "answer": "A"},
            {},
            r"columns answer, prompt; nearest is prompt/completion, which lacks comp",
        ),
        (
            {"instruction": "Q", "response": "A"},
            {},
            "if instruction is the prompt and response the answer, set columns: {prompt: instruction, comp",
        ),
        ({"question": "Q", "answer": "A"}, {}, "set columns: {prompt: question, completion: answer}$"),
        ({"query": "Q", "response": "A", "type": "x"}, {}, "{prompt: query, completion: response}$"),
        ({"input": "Q", "output": "A"}, {}, "{prompt: input, completion: output}$"),
        ({"dialogue": "D", "Answer": "A", "Question": "Q"}, {}, "{prompt: Question, completion: Answer}$"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {},
            "preference data.* set columns: {prompt: prompt, completion: chosen}$",
        ),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, {}, "columns: {messages: chosen}$"),
        ({"message": []}, {}, "nearest is messages, which lacks messages"),
        ({"q": "Q", "a": "A"}, {"prompt": "q", "completion": "answer"}, "which lacks answer; say which"),
        ({"prompt": None, "completion": "A"}, {}, "which needs prompt, completion not to be null"),
    ],
)
def test_unknown_columns_name_what_was_found_and_the_nearest_format(
    row: dict[str, Any], columns: dict[str, str], says: str
) -> None:
    with pytest.raises(CorpusError, match=says) as caught:
        format_of([row], columns)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("f: no known format")


def test_one_odd_row_decides_nothing() -> None:
    pair, chat = {"prompt": "Q", "completion": "A"}, {"messages": [USER, ASSISTANT]}
    assert format_of([pair] * 9 + [chat]) == "prompt/completion"
    ready = {"instruction": "Q", "output": "A", "text": "Q A"}
    assert format_of([ready] * 9 + [{"instruction": "Q", "text": "Q"}]) == "alpaca"
    assert format_of([{**chat, "prompt": "Q"}] * 3) == "messages"


def bad(row: dict[str, Any], format: str, says: str) -> Any:
    return pytest.param(row, format, says, id=says[:40])


PAIR, CHAT = "prompt/completion", "messages"


@pytest.mark.parametrize(
    ("row", "format", "says"),
    [
        bad({"prompt": "Q", "answer": "A"}, PAIR, "`completion` is missing; the row has prompt, answer"),
        bad({"prompt": None, "completion": "A"}, PAIR, "`prompt` is null"),
        bad({"prompt": "Q", "completion": None}, PAIR, "`completion` is null"),
        bad({"prompt": 3, "completion": "A"}, PAIR, "`prompt` is a number, not text"),
        bad({"prompt": "Q", "completion": ["A"]}, PAIR, "`completion` is a list, not text"),
        bad({"prompt": [USER], "completion": "A"}, PAIR, "`prompt` is a list, not text"),
        bad({"prompt": True, "completion": "A"}, PAIR, "`prompt` is true/false, not text"),
        bad({"prompt": "Q", "completion": ""}, PAIR, "empty response: `completion` holds no text"),
        bad({"prompt": "Q", "completion": " \n"}, PAIR, "empty response: `completion` holds no text"),
        bad({"text": "\t"}, "text", "empty response: `text` holds no text"),
        bad({"instruction": "Q", "input": 5, "output": "A"}, "alpaca", "`input` is a number, not text"),
        bad({"instruction": "Q", "output": ""}, "alpaca", "empty response: `output`"),
        bad({"messages": "Q"}, CHAT, "`messages` is text, not a list of turns"),
        bad({"messages": []}, CHAT, "0 turns are no conversation"),
        bad({"messages": [ASSISTANT]}, CHAT, "1 turns are no conversation"),
        bad({"messages": [USER, ASSISTANT, USER]}, CHAT, "the last turn is from 'user'"),
        bad(
            {"messages": [USER, {"role": "assistant", "content": ""}]}, CHAT, "empty response: the last turn"
        ),
        bad({"messages": [USER, {"role": "assistant", "content": None}]}, CHAT, "turn 2: `content` is null"),
        bad({"messages": [{"role": "user"}, ASSISTANT]}, CHAT, "turn 1: `content` is null, not text"),
        bad({"messages": ["Q", ASSISTANT]}, CHAT, "turn 1 is not {role: ..., content: ...}"),
        bad({"messages": [USER, ASSISTANT], "tools": "[{"}, CHAT, "`tools` is not valid JSON"),
        bad(
            {"messages": [USER, ASSISTANT], "chat_template_kwargs": 1},
            CHAT,
            "`chat_template_kwargs` is a number",
        ),
        bad(
            {"conversations": [{"from": "bot", "value": "A"}]},
            "sharegpt",
            "turn 1 is from 'bot'; known are human",
        ),
        bad({"prompt": [USER], "completion": []}, PAIR, "1 turns are no conversation"),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], format: str, says: str) -> None:
    with pytest.raises(BadRow) as caught:
        interpret(row, format, {}, chat=True)
    assert says in str(caught.value)


def test_response_of_tool_calls_alone_is_a_response() -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    assert interpret({"messages": [USER, call]}, "messages", {}, chat=True) == Conversation([USER], [call])


def test_identity_and_source() -> None:
    assert identity({"id": "x"}, {}, "f:1") == "x"
    assert identity({"id": 7}, {}, "f:1") == "7"
    assert identity({}, {}, "f:1") == "f:1"
    for value, says in (
        (None, "null"),
        (1.5, r"1\.5, a floating-point number.*astype"),
        (7.0, r"7\.0, a floating-point number"),
        (float("nan"), "nan, a floating-point number"),
        ("half \ud800", "holds half a surrogate pair"),
        (True, "true/false"),
        ("", "empty"),
        ([1], "a list"),
    ):
        with pytest.raises(BadRow, match=f"`id` (is )?{says}"):
            identity({"id": value}, {}, "f:1")
    assert source_of({"source": "s", "category": "c"}, {}) == "s"
    assert source_of({"category": 3}, {}) == "3"
    assert source_of({}, {}) is None
    with pytest.raises(BadRow, match="`category` holds half a surrogate pair"):
        source_of({"category": "\udfff"}, {})
