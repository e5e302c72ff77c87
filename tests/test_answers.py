"""train_on: all: every answer of a conversation counts, and nothing else, with a template that marks none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_encode import encode, turns
from test_records import write
from tiny_run import arguments, coreset_config, model_folder
from tiny_tokenizer import TEMPLATE, tiny_tokenizer

from coretune.config import ConfigError, check_config
from coretune.data.corpus import Corpus
from coretune.data.encode import Loss
from coretune.data.raw import CorpusError
from coretune.training.corpora import pool_of
from coretune.training.train import CoresetSFTTrainer

#: As SmolLM2 and many others have it: no {% generation %}, and a header for every turn.
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ALL = Loss(every_turn=True)
SYSTEM = {"role": "system", "content": "Be brief."}


def learnt(row: dict[str, Any], template: str = CHATML, loss: Loss = ALL, format: str = "messages") -> str:
    """The tokens that count, as text, holes as |."""
    tokenizer = tiny_tokenizer(template)
    encoded = encode([row], format, tokenizer, loss=loss)
    assert encoded["problem"] == [None]
    labels = np.array(encoded["labels"][0])
    counted = labels != -100
    cuts = np.flatnonzero(np.diff(counted)) + 1
    pieces = np.split(labels, cuts)
    return "|".join(tokenizer.decode(piece) for piece in pieces if piece[0] != -100)


def flagged(answer: int, **flags: Any) -> dict[str, Any]:
    given: list[dict[str, Any]] = [dict(turn) for turn in turns("a", "one", "b", "two", "c", "three")]
    given[2 * answer + 1] |= flags
    return {"messages": given}


@pytest.mark.parametrize("template", [CHATML, TEMPLATE], ids=["without marks", "with marks"])
def test_every_answer_counts_with_its_end_and_no_question_does(template: str) -> None:
    row = {"messages": [SYSTEM, *turns("a", "one", "b", "two", "c", "é 🙂")]}
    assert learnt(row, template) == "one</s>\n|two</s>\n|é 🙂</s>\n"
    assert learnt(row, template, Loss()) == "é 🙂</s>\n"


def test_of_one_exchange_all_and_last_are_the_same_row() -> None:
    row = [{"messages": [SYSTEM, *turns("a", "one")]}]
    one, all_of_it = (encode(row, "messages", tiny_tokenizer(CHATML), loss=loss) for loss in (Loss(), ALL))
    assert one == all_of_it


@pytest.mark.parametrize(
    ("row", "format", "says"),
    [
        (flagged(0, weight=0), "messages", "two</s>\n|three</s>\n"),
        (flagged(1, train=False, weight=1), "messages", "one</s>\n|three</s>\n"),
        (flagged(2, training=False), "messages", "one</s>\n|two</s>\n"),
        (flagged(1, loss=1.0, weight=True), "messages", "one</s>\n|two</s>\n|three</s>\n"),
        ({"messages": turns("a", "one", "b")}, "messages", "one</s>\n"),
        ({"prompt": turns("a", "one", "b"), "completion": turns("", "two", "c", "three")[1:]}, "pair", None),
        ({"history": [["a", "one"]], "prompt": "b", "completion": "two"}, "pair", "one</s>\n|two</s>\n"),
        ({"instruction": "a", "output": "one"}, "alpaca", "one</s>\n"),
    ],
)
def test_flags_of_turns_and_columns_decide_which_answers_count(
    row: dict[str, Any], format: str, says: str | None
) -> None:
    format = {"pair": "prompt/completion"}.get(format, format)
    assert learnt(row, format=format) == (says or "two</s>\n|three</s>\n")  # a prompt's answers are none


def test_what_follows_the_last_answer_that_counts_is_not_read() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    rows = [flagged(2, weight=0), {"messages": turns("a", "one", "b", "two")}]
    first, second = encode(rows, "messages", tokenizer, loss=ALL)["input_ids"]
    assert first == second


@pytest.mark.parametrize(
    ("row", "says", "left_out"),
    [
        (
            {"messages": [{**turn, "weight": 0} for turn in turns("a", "one")]},
            "every assistant turn is",
            True,
        ),
        (flagged(1, weight=0.5), "weight: 0.5, and a turn is trained on as a whole or not at all", False),
        ({"messages": turns("a", "", "b", "two")}, "empty response: turn 2 holds no text", False),
        ({"messages": turns("", "one", "b", "two")[1:]}, "the first turn is the assistant's", False),
        ({"messages": [*turns("a"), SYSTEM]}, "no turn is from the assistant", False),
        (
            {"messages": [{**turns("a")[0], "train": True}, *turns("", "b")[1:]]},
            "turn 1 is from 'user'",
            False,
        ),
    ],
)
def test_rows_without_such_answers_are_named(row: dict[str, Any], says: str, left_out: bool) -> None:
    encoded = encode([row], "messages", tiny_tokenizer(CHATML), loss=ALL)
    assert says in encoded["problem"][0]
    assert encoded["left_out"] == [left_out]


def test_an_answer_is_never_cut_and_what_precedes_the_first_is() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    row = {"messages": [SYSTEM, *turns("a", "one", "b", "two")]}
    whole = encode([row], "messages", tokenizer, loss=ALL)
    length, begin = len(whole["input_ids"][0]), whole["prompt_length"][0]
    cut = encode([row], "messages", tokenizer, length - begin + 1, ALL)
    assert (cut["truncated"], cut["prompt_length"]) == ([True], [1])
    assert cut["labels"][0][1:] == whole["labels"][0][begin:]


def test_of_a_row_that_is_too_long_the_first_answers_are_left_out_whole_and_counted(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(CHATML)
    row = {"messages": turns("a", "one", "b", "two", "c", "three")}
    whole = encode([row], "messages", tokenizer, loss=ALL)
    length, begin = len(whole["input_ids"][0]), whole["prompt_length"][0]
    found = {}
    for room in range(2, length + 1):
        cut = encode([row], "messages", tokenizer, room, ALL)
        if cut["problem"] == [None]:
            assert len(cut["input_ids"][0]) == min(room, length)
            counted = [label for label in cut["labels"][0] if label != -100]
            found[room] = (tokenizer.decode(counted), cut["unfit"][0])
        else:
            assert "the response alone is" in cut["problem"][0]
    answers = ["one</s>\n", "two</s>\n", "three</s>\n"]
    assert set(found.values()) == {("".join(answers[out:]), out) for out in range(3)}
    assert found[length - begin + 1][1] == 0
    assert found[length - begin][1] == 1
    rows = write(tmp_path / "p.jsonl", [row, {"messages": turns("a", "one")}])
    corpus = Corpus.build(rows, tokenizer, max_length=length - begin, train_on="all")
    assert corpus.notes == [
        "1 answers of 1 rows are not trained on: with them the rows are longer than max_length; raise it to "
        "train on them"
    ]


#: Leaves what an answer says before its last word out once another turn follows, as reasoning models' do.
FORGETS = CHATML.replace("m['content']", "(m['content'] if loop.last else m['content'].split()[-1])")
#: Only of an answer that says so.
FORGETS_SOME = CHATML.replace(
    "m['content']", "(m['content'] if loop.last else m['content'].split('think')[-1])"
)


def test_a_template_that_rewrites_earlier_answers_is_refused_in_one_line(tmp_path: Path) -> None:
    always = CHATML.replace("m['role'] + '|>'", "m['role'] + '|>' + ('' if loop.last else ' ')")
    file = write(tmp_path / "p.jsonl", [{"messages": turns("a", "x y", "b", "two")}])
    with pytest.raises(CorpusError, match=r"writes an answer otherwise when another turn follows; .* last$"):
        Corpus.build(file, tiny_tokenizer(always), max_length=99, train_on="all")
    for row in (turns("a", "x y", "b", "two"), turns("a", "y", "b", "two")):
        encoded = encode([{"messages": row}], "messages", tiny_tokenizer(FORGETS), loss=ALL)
        problem = encoded["problem"][0]
        assert (problem is not None and "writes answer 1 otherwise when more turns" in problem) == (
            row[1]["content"] == "x y"
        )


def test_two_settings_that_say_what_counts_are_refused() -> None:
    for given in ((True, False), (False, False), (None, True)):
        with pytest.raises(CorpusError, match=r"train_on: all says what the loss counts, and so does"):
            Loss.of("all", *given)
    with pytest.raises(CorpusError, match="train_on is 'every'; give last or all"):
        Loss.of("every", None, False)
    raw = {"model_name_or_path": "m", "train_data": "d", "output_dir": "o", "train_on": "every"}
    with pytest.raises(ConfigError, match="train_on is 'every': input should be 'last' or 'all'"):
        check_config({**raw, "coreset": {"method": "random", "budget": 2}})


def test_measured_is_what_is_trained_of_several_answers(tmp_path: Path) -> None:
    """The labels of the corpus are those of training and of every measurement."""
    rows = [{"messages": turns(f"say {row}", "one", "and", "two " * (1 + row % 3))} for row in range(12)]
    tokenizer = tiny_tokenizer(CHATML)
    pool = Corpus.build(write(tmp_path / "p.jsonl", rows), tokenizer, max_length=120, train_on="all")
    trainer = CoresetSFTTrainer(
        str(model_folder()),
        arguments(tmp_path / "run"),
        coreset=coreset_config("loss", budget=4),
        train_dataset=pool.dataset,
        rows=pool,
        processing_class=tokenizer,
    )
    expected, counted = [], []
    for row in trainer.train_dataset:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        counted.append(int((labels[:, 1:] != -100).sum()))
        with torch.no_grad():
            expected.append(float(trainer.model.eval()(input_ids=ids, labels=labels).loss))
    np.testing.assert_allclose(trainer.select().pool.feature("loss"), expected, rtol=1e-4)
    assert pool.response_length.tolist() == counted
    assert all("one" in tokenizer.decode(row[row != -100]) for row in pool.labels(range(12)))
    assert json.loads(json.dumps(pool.record(0))) == rows[int(pool.ids[0].split(":")[1]) - 1]


@pytest.mark.parametrize("place", [0, 1])
def test_a_turn_that_is_not_to_be_trained_on_is_not_where_all_tokens_count(place: int) -> None:
    row = {"messages": [dict(turn) for turn in turns("a", "one", "b", "two")]}
    row["messages"][place]["train"] = False
    assert learnt(row) == ("one</s>\n|two</s>\n" if place == 0 else "two</s>\n")
    (problem,) = encode([row], "messages", tiny_tokenizer(CHATML), loss=Loss(False))["problem"]
    assert problem == (
        "a turn has train: false: it is not to be trained on, and completion_only_loss: false counts all "
        "tokens; set train_on: all instead"
    )


def test_train_on_all_says_so_where_no_row_has_more_than_one_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several = {"messages": turns("a", "one", "b", "two")}
    alone = [{"messages": turns("a", "one")}, {"messages": turns("b", "two")}]
    raw = {"model_name_or_path": "m", "output_dir": "o", "coreset": {"method": "random", "budget": 1}}
    for rows, train_on, told in (
        (alone, "all", True),
        ([*alone, several], "all", False),
        (alone, "last", False),
    ):
        caplog.clear()
        path = write(tmp_path / "p.jsonl", rows)
        config = check_config({**raw, "train_data": str(path), "train_on": train_on})
        pool_of(config, tiny_tokenizer(CHATML), 60)
        assert ("no row of" in caplog.text) == told
        assert ("has more than one answer to train on" in caplog.text) == told
