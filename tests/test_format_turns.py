"""System texts, histories and verdicts of rows, and columns that are not used."""

from __future__ import annotations

from typing import Any

import pytest

from coretune.data.formats import BadRow, Conversation, PlainText, interpret
from coretune.data.recognise import unused

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("row", "format", "prompt"),
    [
        ({"system": "S", "messages": [USER, ASSISTANT]}, "messages", [SYSTEM, USER]),
        ({"system": "S", "messages": [SYSTEM, USER, ASSISTANT]}, "messages", [SYSTEM, USER]),
        ({"system": "", "messages": [USER, ASSISTANT]}, "messages", [USER]),
        (
            {
                "system": "S",
                "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            },
            "sharegpt",
            [SYSTEM, USER],
        ),
        ({"system": "S", "prompt": "Q", "completion": "A"}, "prompt/completion", [SYSTEM, USER]),
        ({"system": "S", "prompt": [USER], "completion": [ASSISTANT]}, "prompt/completion", [SYSTEM, USER]),
        ({"system": "S", "instruction": "Q", "output": "A"}, "alpaca", [SYSTEM, USER]),
        (
            {"system": "S", "history": [["one", "two"]], "instruction": "Q", "output": "A"},
            "alpaca",
            [SYSTEM, turn("user", "one"), turn("assistant", "two"), USER],
        ),
        (
            {"history": [["one", "two"], ["three", "four"]], "prompt": "Q", "completion": "A"},
            "prompt/completion",
            [
                turn("user", "one"),
                turn("assistant", "two"),
                turn("user", "three"),
                turn("assistant", "four"),
                USER,
            ],
        ),
        ({"history": [], "instruction": "Q", "output": "A"}, "alpaca", [USER]),
    ],
)
def test_a_system_text_and_a_history_become_turns(
    row: dict[str, Any], format: str, prompt: list[dict[str, Any]]
) -> None:
    assert interpret(row, format, {}, chat=True) == Conversation(prompt, [ASSISTANT])


def test_without_a_chat_template_a_system_text_is_used_or_named() -> None:
    alpaca = {"system": "S", "instruction": "Do", "output": "A"}
    joined = interpret(alpaca, "alpaca", {}, chat=False)
    assert joined == PlainText("S\n\n### Instruction:\nDo\n\n### Response:\n", "A")
    for row, says in (
        ({"prompt": "Q", "completion": "A", "system": "S"}, "`system` needs a chat template"),
        ({"prompt": "Q", "completion": "A", "history": [["a", "b"]]}, "`history` needs a chat template"),
    ):
        with pytest.raises(BadRow, match=says):
            interpret(row, "prompt/completion", {}, chat=False)
    with pytest.raises(BadRow, match="`history` needs a chat template"):
        interpret({**alpaca, "history": [["a", "b"]]}, "alpaca", {}, chat=False)


@pytest.mark.parametrize(
    ("row", "format", "says"),
    [
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "messages", "the response has weight: 0"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "messages", "a turn has weight: 0.5"),
        ({"messages": [USER, {**ASSISTANT, "train": False}]}, "messages", "the response has train: false"),
        ({"messages": [USER, {**ASSISTANT, "loss": False}]}, "messages", "the response has loss: false"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A", "weight": 0},
                ]
            },
            "sharegpt",
            "the response has weight: 0",
        ),
        (
            {"prompt": [USER], "completion": [{**ASSISTANT, "weight": 0}]},
            "prompt/completion",
            "the response has weight: 0",
        ),
        (
            {"prompt": "Q", "completion": "A", "label": False},
            "prompt/completion",
            "`label` is false: the com",
        ),
        (
            {"prompt": "Q", "completion": "A", "label": "false"},
            "prompt/completion",
            "`label` is false: the",
        ),
        (
            {"prompt": "Q", "completion": "A", "label": " FALSE"},
            "prompt/completion",
            "`label` is false: the completion",
        ),
        ({"system": "T", "messages": [SYSTEM, USER, ASSISTANT]}, "messages", "say two things; keep one"),
        ({"system": 5, "messages": [USER, ASSISTANT]}, "messages", "`system` is a number, not text"),
        ({"history": ["a"], "prompt": "Q", "completion": "A"}, "prompt/completion", "is not [[question, ans"),
        (
            {"history": [["a", "b"]], "prompt": [USER], "completion": [ASSISTANT]},
            "prompt/completion",
            "stands beside a list of turns",
        ),
        ({"text": float("nan")}, "text", "`text` is NaN (an empty cell), not text"),
    ],
)
def test_what_is_not_to_be_learnt_as_it_stands_is_named(row: dict[str, Any], format: str, says: str) -> None:
    with pytest.raises(BadRow) as caught:
        interpret(row, format, {}, chat=True)
    assert says in str(caught.value)


def test_rows_that_say_they_are_to_be_learnt_are() -> None:
    weighed = {
        "messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1, "train": True}]
    }
    example = interpret(weighed, "messages", {}, chat=True)
    assert isinstance(example, Conversation)
    assert len(example.prompt) == 3
    for label in (True, "True", 1, None, 0, 0.0, "0", "no", []):  # a number is a class, not KTO's verdict
        row = {"prompt": "Q", "completion": "A", "label": label}
        assert interpret(row, "prompt/completion", {}, chat=True) == Conversation([USER], [ASSISTANT])


def test_a_label_that_is_the_completion_is_no_verdict() -> None:
    row = {"prompt": "Is it?", "label": "false"}
    example = interpret(row, "prompt/completion", {"completion": "label"}, chat=False)
    assert example == PlainText("Is it?", "false")


@pytest.mark.parametrize("empty", [None, "", " "])
def test_tools_and_arguments_of_a_table_are_read_as_json_and_empty_cells_are_none(empty: Any) -> None:
    row = {"prompt": "Q", "completion": "A", "tools": '[{"name": "f"}]', "chat_template_kwargs": '{"a": 1}'}
    example = interpret(row, "prompt/completion", {}, chat=True)
    assert isinstance(example, Conversation)
    assert example.arguments == {"a": 1, "tools": [{"name": "f"}]}
    example = interpret({**row, "tools": empty, "chat_template_kwargs": empty}, "prompt/completion", {}, True)
    assert isinstance(example, Conversation)
    assert example.arguments == {}
    with pytest.raises(BadRow, match="`chat_template_kwargs` is not valid JSON"):
        interpret({**row, "chat_template_kwargs": "{"}, "prompt/completion", {}, True)


def test_columns_that_are_not_used_are_named() -> None:
    found = {"prompt", "completion", "id", "category", "score", "label", "tools", "history", "coretune"}
    assert unused("prompt/completion", found, {}, "tools") == ["score"]
    assert unused("prompt/completion", found, {}, None) == ["score", "tools"]
    assert unused("prompt/completion", found, {"source": "score"}, "tools") == ["category"]
    assert unused("text", {"text", "system", "label", "source", "category"}, {}, "tools") == [
        "category",
        "label",
        "system",
    ]
    assert unused("alpaca", {"q", "output", "input", "instruction"}, {"instruction": "q"}, "tools") == [
        "instruction"
    ]
