"""Tokens, borders and cuts; the same ids and masks as TRL's own preparation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import TEMPLATE, tiny_tokenizer
from tokenizers import processors

from coretune.data.encode import Loss, cut, encode_batch
from coretune.data.formats import BadRow
from coretune.data.raw import CorpusError

ASSISTANT = 5  # <|assistant|>
BOS, EOS = 1, 2


def encode(
    rows: list[dict[str, Any]],
    format: str,
    tokenizer: Any,
    max_length: int = 10_000,
    loss: Loss | None = None,
) -> dict[str, list[Any]]:
    size = len(rows)
    batch = {
        "record": [json.dumps(row) for row in rows],
        "problem": [None] * size,
        "file": ["f"] * size,
        "number": list(range(1, size + 1)),
    }
    return as_lists(encode_batch(batch, tokenizer, {"f": format}, {}, max_length, loss))


def as_lists(encoded: dict[str, list[Any]]) -> dict[str, list[Any]]:
    tokens = {name: [row.tolist() for row in encoded[name]] for name in ("input_ids", "labels")}
    return {**encoded, **tokens}


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


CHATS = [
    {"prompt": turns("Name the first word"), "completion": turns("", "the answer")[1:]},
    {"prompt": turns("a", "b", "c?"), "completion": turns("", "é 🙂 </s> odd")[1:]},
    {"prompt": [{"role": "system", "content": "Be brief."}, *turns("x")], "completion": turns("", " y ")[1:]},
]
TEXT_PAIRS = [
    {"prompt": "The sky is", "completion": " blue."},
    {"prompt": "Q: what?\n", "completion": "this</s>"},
]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """rows -> what a real SFTTrainer makes of them."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    def run(rows: list[dict[str, Any]], tokenizer: Any, **loss: Any) -> list[dict[str, Any]]:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        args = SFTConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **loss,
        )
        trainer = SFTTrainer(
            LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)),
            args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return list(trainer.train_dataset)

    return run


@pytest.mark.parametrize(
    ("rows", "format", "template"),
    [
        (CHATS, "prompt/completion", TEMPLATE),
        (TEXT_PAIRS, "prompt/completion", None),
        ([{"text": "One line."}, {"text": "Ends itself.</s>"}], "text", TEMPLATE),
    ],
)
def test_ids_and_mask_equal_those_of_trl(prepare: Any, rows: Any, format: str, template: str | None) -> None:
    tokenizer = tiny_tokenizer(template)
    ours, theirs = encode(rows, format, tokenizer), prepare(rows, tokenizer)
    assert ours["problem"] == [None] * len(rows)
    for ids, prompt_length, row in zip(ours["input_ids"], ours["prompt_length"], theirs, strict=True):
        assert ids == row["input_ids"]
        # a text's leading BOS is a label for TRL; no model predicts its first token, so the loss is the same
        unseen = 1 if format == "text" else 0
        masked = [-100] * prompt_length + ids[prompt_length:]
        assert masked[unseen:] == row["labels"][unseen:]


CONVERSATIONS = [
    {"messages": turns("a", "b", "c?", "é 🙂 </s> odd")},
    {"messages": [{"role": "system", "content": "Be brief."}, *turns("x", "y")]},
]


@pytest.mark.parametrize(
    ("rows", "format", "template", "loss"),
    [
        (CONVERSATIONS, "messages", TEMPLATE, {"assistant_only_loss": True}),
        (CHATS, "prompt/completion", TEMPLATE, {"assistant_only_loss": True}),
        (CHATS, "prompt/completion", TEMPLATE, {"assistant_only_loss": True, "completion_only_loss": False}),
        (CHATS, "prompt/completion", TEMPLATE, {"completion_only_loss": False}),
        (CHATS, "prompt/completion", TEMPLATE, {"completion_only_loss": True}),
        (TEXT_PAIRS, "prompt/completion", None, {"completion_only_loss": False}),
        ([{"text": "One line."}], "text", TEMPLATE, {"completion_only_loss": False}),
    ],
)
def test_the_loss_counts_what_trl_counts(
    prepare: Any, rows: Any, format: str, template: str | None, loss: dict[str, bool]
) -> None:
    tokenizer = tiny_tokenizer(template)
    asked = Loss(loss.get("completion_only_loss"), loss.get("assistant_only_loss", False))
    ours = encode(rows, format, tokenizer, loss=asked)
    assert ours["problem"] == [None] * len(rows)
    theirs = prepare(rows, tokenizer, **loss)
    for ids, labels, begin, row in zip(
        ours["input_ids"], ours["labels"], ours["prompt_length"], theirs, strict=True
    ):
        assert ids == row["input_ids"]
        assert labels[1:] == row["labels"][1:]  # no model predicts the first token
        assert labels[:begin] == [-100] * begin
        assert labels[begin] == ids[begin]


def test_all_assistant_turns_are_learnt_and_the_turns_between_are_not() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(CONVERSATIONS[:1], "messages", tokenizer, loss=Loss(assistant_only=True))
    ids, labels = encoded["input_ids"][0], encoded["labels"][0]
    learnt = tokenizer.decode([token for token in labels if token != -100])
    assert learnt == "b</s>é 🙂 </s> odd</s>"
    (plain,) = encode(CONVERSATIONS[:1], "messages", tokenizer)["labels"]
    assert plain != labels
    cut_down = encode(CONVERSATIONS[:1], "messages", tokenizer, len(ids) - 1, Loss(assistant_only=True))
    assert cut_down["truncated"] == [True]
    assert [token for token in cut_down["labels"][0] if token != -100] == [t for t in labels if t != -100]
    again = encode(CONVERSATIONS[:1] * 2, "messages", tokenizer, loss=Loss(assistant_only=True))
    assert again["digest"][0] == encoded["digest"][0]


def test_a_turn_that_is_not_to_be_learnt_is_named_where_it_would_be() -> None:
    muted = turns("a", "b", "c", "d")
    muted[1] |= {"weight": 0}  # type: ignore[dict-item]
    row = [{"messages": muted}]
    assert encode(row, "messages", tiny_tokenizer())["problem"] == [None]
    (problem,) = encode(row, "messages", tiny_tokenizer(), loss=Loss(assistant_only=True))["problem"]
    assert "a turn has weight: 0" in problem


def test_a_loss_that_the_rows_have_no_part_for_is_refused_with_the_reason() -> None:
    unmarked = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(CorpusError, match=r"chat template marks no assistant text \(\{% generation %\}\)"):
        Loss(assistant_only=True).refuse(tiny_tokenizer(unmarked))
    with pytest.raises(CorpusError, match="assistant_only_loss is true, and the rows are texts"):
        encode([{"text": "x"}], "text", tiny_tokenizer(), loss=Loss(assistant_only=True))
    with pytest.raises(CorpusError, match="completion_only_loss is true, and the rows are texts without"):
        encode([{"text": "x"}], "text", tiny_tokenizer(), loss=Loss(completion_only=True))


@pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
@pytest.mark.parametrize("spelt", [True, False])
def test_one_bos_and_one_eos_whoever_writes_them(adds: str, spelt: bool) -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    begin = "<s>" if spelt else ""
    text = encode([{"text": f"{begin}It is."}, {"text": f"{begin}It is.</s>"}], "text", tokenizer)
    pair = encode([{"prompt": f"{begin}Q?\n", "completion": "A"}], "prompt/completion", tokenizer)
    assert text["problem"] + pair["problem"] == [None] * 3
    for ids in (*text["input_ids"], *pair["input_ids"]):
        assert ids.count(BOS) == int(spelt or adds.startswith("<s>"))
        assert BOS not in ids[1:]
        assert ids.count(EOS) == 1 == [EOS].count(ids[-1])
    assert text["input_ids"][0] == text["input_ids"][1]
    at = pair["prompt_length"][0]
    assert tokenizer.decode(pair["input_ids"][0][at:]) == "A</s>"


def test_texts_messages_and_sharegpt_say_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    pair = encode([{"prompt": "Q?", "completion": "A"}], "prompt/completion", tokenizer)
    chat = encode([{"messages": turns("Q?", "A")}], "messages", tokenizer)
    share = encode(
        [{"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A"}]}],
        "sharegpt",
        tokenizer,
    )
    alpaca = encode([{"instruction": "Q?", "output": "A"}], "alpaca", tokenizer)
    assert pair == chat == share == alpaca


def test_response_begins_after_the_generation_prompt_of_the_last_turn() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode([{"messages": turns("a", "b", "c", "d")}], "messages", tokenizer)
    ids, at = encoded["input_ids"][0], encoded["prompt_length"][0]
    assert ids[0] == BOS
    assert ids[at - 1] == ASSISTANT
    assert tokenizer.decode(ids[at:]) == "d</s>\n"
    assert ids.count(ASSISTANT) == 2


def test_tools_reach_the_template() -> None:
    tokenizer = tiny_tokenizer()
    row = {"messages": turns("a", "b"), "tools": [{"name": "weather"}]}
    (ids,) = encode([row], "messages", tokenizer)["input_ids"]
    assert tokenizer.decode(ids).startswith("<s><|tool|>weather\n<|user|>a")


@pytest.mark.parametrize("bos", [True, False])
def test_text_is_all_response(bos: bool) -> None:
    encoded = encode([{"text": "It is."}], "text", tiny_tokenizer(bos=bos))
    assert encoded["prompt_length"] == [int(bos)]
    assert (encoded["input_ids"][0][0] == BOS) == bos
    assert encoded["input_ids"][0][-1] == EOS


def test_both_kinds_of_text_in_one_batch() -> None:
    tokenizer = tiny_tokenizer()
    batch = {
        "record": [
            json.dumps({"text": "One."}),
            json.dumps({"messages": turns("a", "b")}),
            None,
            json.dumps({"text": "Two."}),
        ],
        "problem": [None, None, "broken", None],
        "file": ["t", "m", "m", "t"],
        "number": [1, 1, 2, 2],
    }
    mixed = as_lists(encode_batch(batch, tokenizer, {"t": "text", "m": "messages"}, {}, 100))
    assert mixed["id"] == ["t:1", "m:1", "", "t:2"]
    assert mixed["problem"] == [None, None, "broken", None]
    one, two = encode([{"text": "One."}, {"text": "Two."}], "text", tokenizer)["input_ids"]
    (chat,) = encode([{"messages": turns("a", "b")}], "messages", tokenizer)["input_ids"]
    assert mixed["input_ids"] == [one, chat, [], two]


def problem_of(row: dict[str, Any], format: str, tokenizer: Any, max_length: int = 100) -> str:
    good = {"text": "fine."} if format == "text" else {"prompt": "fine?\n", "completion": "yes"}
    if format == "messages":
        good = {"messages": turns("fine?", "yes")}
    first, problem, last = encode([good, row, good], format, tokenizer, max_length)["problem"]
    assert first is last is None  # its neighbours are untouched
    assert "\n" not in problem
    return str(problem)


def test_template_that_renders_the_prompt_differently_alone_is_refused() -> None:
    template = TEMPLATE.replace(
        "{% if add_generation_prompt %}<|assistant|>", "{% if add_generation_prompt %}<|assistant|>:"
    )
    rows = encode(
        [{"prompt": "Q", "completion": "A"}, {"prompt": "Q", "completion": ": A"}],
        "prompt/completion",
        tiny_tokenizer(template),
    )
    assert "prompt's tokens change when the response follows" in rows["problem"][0]
    assert rows["problem"][1] is None


def test_tokens_merging_across_the_border_are_refused() -> None:
    said = problem_of(
        {"prompt": "the answer: ", "completion": "the"}, "prompt/completion", tiny_tokenizer(None)
    )
    assert "tokens merge across the border" in said


def test_words_that_would_fuse_without_a_template_are_refused() -> None:
    tokenizer = tiny_tokenizer(None)
    said = problem_of({"prompt": "last word: button", "completion": "button"}, "prompt/completion", tokenizer)
    assert "would read 'word: buttonbutton'; end the prompt with a newline" in said
    unspaced = encode([{"prompt": "你好吗", "completion": "好"}], "prompt/completion", tokenizer)
    assert unspaced["problem"] == [None]


def test_other_rows_that_cannot_be_tokenised() -> None:
    said = problem_of(
        {"messages": [{"role": "robot", "content": "x"}, *turns("a", "b")[1:]]}, "messages", tiny_tokenizer()
    )
    assert said.startswith("the chat template refuses the conversation (unknown role robot)")
    assert "half a surrogate pair" in problem_of({"text": "cut \ud83d"}, "text", tiny_tokenizer())
    silent = tiny_tokenizer("{{ bos_token }}{{ messages[0]['content'] }}")
    assert (
        "empty response: no token of it"
        in encode([{"prompt": "Q", "completion": "A"}], "prompt/completion", silent)["problem"][0]
    )
    plain = tiny_tokenizer(None, bos=False)
    assert "the prompt is empty and there is no BOS" in problem_of(
        {"prompt": "", "completion": "A"}, "prompt/completion", plain
    )
    with_bos = encode([{"prompt": "", "completion": "A"}], "prompt/completion", tiny_tokenizer(None))
    assert with_bos["prompt_length"] == [1]


def test_plain_text_needs_an_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match=r"no EOS token to end plain text with; set tokenizer.eos_token"):
        encode([{"text": "x"}], "text", tokenizer)


def test_response_that_does_not_fit_is_named_with_both_numbers() -> None:
    tokenizer = tiny_tokenizer(None)
    row = {"prompt": "Q?\n", "completion": "zqj" * 10}  # no merges: a token a letter, and EOS
    assert "the response alone is 31 tokens and max_length is 31" in problem_of(
        row, "prompt/completion", tokenizer, 31
    )
    fits = encode([row], "prompt/completion", tokenizer, 32)
    assert (fits["problem"], fits["prompt_length"], fits["truncated"]) == ([None], [1], [True])
    assert fits["input_ids"][0][0] == BOS
    said = problem_of({"text": "zqj" * 10}, "text", tokenizer, 31)  # BOS + 30 letters + EOS
    assert "the response alone is 31 tokens and max_length is 31" in said
    assert encode([{"text": "zqj" * 10}], "text", tokenizer, 32)["truncated"] == [False]


@settings(deadline=None, max_examples=300)
@given(
    prompt=st.lists(st.integers(10, 99), max_size=12),
    response=st.lists(st.integers(10, 99), min_size=1, max_size=12),
    bos=st.booleans(),
    max_length=st.integers(2, 30),
)
def test_cut_takes_the_prompt_from_the_left_and_nothing_else(
    prompt: list[int], response: list[int], bos: bool, max_length: int
) -> None:
    prompt = [BOS, *prompt] if bos else prompt
    whole = prompt + response
    if len(whole) <= max_length:
        assert cut(whole, len(prompt), BOS, max_length) == (whole, len(prompt))
    elif len(response) + 1 > max_length:
        with pytest.raises(BadRow, match=f"{len(response)} tokens and max_length is {max_length}"):
            cut(whole, len(prompt), BOS, max_length)
    else:
        ids, at = cut(whole, len(prompt), BOS, max_length)
        assert len(ids) == max_length
        assert ids[at:] == response
        kept = ids[1:at] if bos else ids[:at]
        assert kept == prompt[len(prompt) - len(kept) :]
        assert not bos or ids[0] == BOS


def test_digest_is_of_the_content_alone() -> None:
    tokenizer = tiny_tokenizer(None)
    rows = [{"id": "a", "prompt": "x\n", "completion": "y"}, {"id": "b", "prompt": "x\n", "completion": "y"}]
    rows += [{"id": "c", "prompt": "x\n", "completion": "z"}, {"id": "d", "prompt": "x", "completion": "\ny"}]
    a, b, c, d = encode(rows, "prompt/completion", tokenizer)["digest"]
    assert a == b
    assert len({a, c, d}) == 3  # the same ids with another border are another example
