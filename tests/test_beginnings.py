"""The ids of a text's beginnings are those of tokenising each beginning by itself."""

from __future__ import annotations

from functools import cache
from itertools import chain
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import SPECIAL, TEXTS
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from coretune.data import beginnings
from coretune.data.beginnings import tokenised

AFTER, BEFORE, ALONE, LATE = "<after>", "<before>", "<alone>", "<late>"
ADDED = [
    AddedToken(AFTER, rstrip=True, normalized=False),
    AddedToken(BEFORE, lstrip=True, normalized=False),
    AddedToken(ALONE, single_word=True, normalized=False),
    AddedToken(LATE, normalized=True),  # found in the normalised text
]
#: Name -> (pre-tokeniser, normaliser): what real tokenizers do with the begin of a piece, and with blanks.
WAYS: dict[str, tuple[Any, Any]] = {
    "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    "bytes with a space before": (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
    "a mark before every piece": (pre_tokenizers.Metaspace(prepend_scheme="always"), None),
    "a mark before the first piece": (pre_tokenizers.Metaspace(prepend_scheme="first"), None),
    "a mark by the normaliser": (
        None,
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "composed, stripped, lower": (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()]),
    ),
}


@cache
def tokenizer_of(way: str) -> PreTrainedTokenizerFast:
    before, normal = WAYS[way]
    made = Tokenizer(models.BPE(unk_token="<pad>"))
    if before is not None:
        made.pre_tokenizer = before
    if normal is not None:
        made.normalizer = normal
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator([*TEXTS, " a  b\n\nc \n d", "ﬁ é É"], trainer)
    made.add_tokens(ADDED)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


OTHERS = [" ", "\n", "  \n", "a", "line", "Name", "ﬁ", "é", "e\u0301", "<", "s>", "▁", "中"]
pieces = st.lists(st.sampled_from([*SPECIAL, AFTER, BEFORE, ALONE, LATE, *OTHERS]), max_size=12)
rows = st.tuples(pieces, st.lists(st.integers(0, 12), max_size=3), pieces)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60)
@given(rows=st.lists(rows, min_size=1, max_size=4))
def test_beginnings_have_the_ids_of_being_tokenised_alone(
    way: str, rows: list[tuple[list[str], list[int], list[str]]]
) -> None:
    tokenizer = tokenizer_of(way)
    wholes = ["".join(whole) for whole, _, _ in rows]
    parts = [
        [*("".join(whole[:end]) for end in ends), "".join(other), "".join(whole)[: 2 * len(whole)]]
        for whole, ends, other in rows
    ]
    alone = iter(tokenizer([*wholes, *chain(*parts)], add_special_tokens=False)["input_ids"])
    ids, found = tokenised(wholes, parts, tokenizer)
    assert ids == [next(alone) for _ in wholes]
    assert found == [[next(alone) for _ in texts] for texts in parts]


def test_a_conversations_beginnings_are_not_tokenised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("bytes")
    read: list[str] = []
    spied = lambda texts, of: read.extend(texts) or encoded(texts, of)  # noqa: E731
    encoded = beginnings._encoded
    monkeypatch.setattr(beginnings, "_encoded", spied)
    turns = [f"<|user|>question {n}\n<|assistant|>answer {n}</s>\n" for n in range(4)]
    whole = "".join(turns)
    parts = [end for n in range(4) for end in ("".join(turns[: n + 1]), "".join(turns[:n]) + "<|user|>")]
    tokenised([whole] * 3, [parts] * 3, tokenizer)
    assert read[:3] == [whole] * 3
    assert sorted(read[3:]) == ["</s>\n", "<|user|>"]


def test_a_tokenizer_without_offsets_tokenises_every_text() -> None:
    class Letters:
        added_tokens_decoder = MappingProxyType({97: AddedToken("a", normalized=False)})

        def __call__(self, texts: list[str], **settings: Any) -> BatchEncoding:
            return BatchEncoding({"input_ids": [[ord(letter) for letter in text] for text in texts]})

    assert tokenised(["abc", "b"], [["ab", "c"], []], Letters()) == (
        [[97, 98, 99], [98]],
        [[[97, 98], [99]], []],
    )
