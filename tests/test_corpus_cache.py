"""A corpus that is kept: taken again for the same content alone, and made again where it is damaged."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from test_corpus import make_rows, same
from test_records import write
from tiny_tokenizer import TEMPLATE, tiny_tokenizer

from coretune.data.corpus import Corpus
from coretune.data.finding import read_found
from coretune.data.raw import CorpusError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_cache_is_used_and_never_for_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    file, rows = data / "p.jsonl", make_rows(30)
    tokenizer = tiny_tokenizer()

    def build(tokenizer: Any = tokenizer, **given: Any) -> Corpus:
        return Corpus.build(file, tokenizer, cache_dir=cache, **{"max_length": 60, **given})

    write(file, rows)
    first = build()
    stamp = os.stat(file)
    assert [path.name for path in data.iterdir()] == ["p.jsonl"]
    assert len(list(cache.iterdir())) == 1  # nothing half-made stays behind
    with monkeypatch.context() as patched:
        patched.setattr("coretune.data.freeze._freeze", lambda *_: pytest.fail("tokenised again"))
        assert same(build(), first)

    write(file, [{**row, "prompt": row["prompt"][::-1]} for row in rows])
    os.utime(file, (stamp.st_atime, stamp.st_mtime))  # same name, size and date; other content
    assert build().fingerprint != first.fingerprint
    write(file, rows)
    assert build(max_length=61).fingerprint != first.fingerprint
    assert build(tokenizer=tiny_tokenizer("{# 2 #}" + TEMPLATE)).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 4


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other_fingerprint(file: Path) -> None:
    file.write_text(file.read_text().replace('"fingerprint": "', '"fingerprint": "0'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("corpus.arrow", _flip),
        ("corpus.arrow", _cut),
        ("corpus.arrow", Path.unlink),
        ("account.json", _cut),
        ("account.json", _other_fingerprint),
    ],
)
def test_a_damaged_cache_is_named_and_made_again(
    tmp_path: Path, tokenizer: Any, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file, cache = write(tmp_path / "p.jsonl", make_rows(20)), tmp_path / "cache"
    first = Corpus.build(file, tokenizer, max_length=60)
    Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    (kept,) = cache.iterdir()
    whole = (kept / name).read_bytes()
    damage(kept / name)
    with caplog.at_level(logging.WARNING, logger="coretune"):
        again = Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    assert f"{kept / name} is damaged and made again" in caplog.text
    assert same(again, first)
    assert (kept / name).read_bytes() == whole
    assert list(cache.iterdir()) == [kept]
    caplog.clear()
    Corpus.build(file, tokenizer, max_length=60, cache_dir=cache)
    assert not caplog.records


@pytest.mark.parametrize("package", ["transformers", "datasets", "jinja2"])
def test_a_cache_of_another_version_is_not_taken(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    file = write(tmp_path / "p.jsonl", make_rows(4))
    Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(
        "coretune.data.freeze.version", lambda name: "9" if name == package else version(name)
    )
    Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "p.jsonl", make_rows(5))

    def reading(every: Any, tell: Any) -> Any:
        yield from read_found(every, tell)
        with file.open("a") as opened:
            opened.write("{}")

    monkeypatch.setattr("coretune.data.gather.read_found", reading)
    with pytest.raises(CorpusError, match="was written to while it was read"):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cached_bad_rows_are_still_refused_and_listed(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": "fine"}, {"text": ""}])
    kept = tmp_path / "cache"
    for _ in range(2):
        corpus = Corpus.build(file, tokenizer, max_length=60, skip_bad_rows=True, cache_dir=kept)
        assert corpus.dropped == [("p.jsonl line 2", "empty response: `text` holds no text")]
    with pytest.raises(CorpusError, match=r"p.jsonl line 2: empty response"):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=kept)


def test_refused_data_leaves_nothing_behind(tmp_path: Path, tokenizer: Any) -> None:
    file = write(tmp_path / "p.jsonl", [{"text": ""}])
    with pytest.raises(CorpusError):
        Corpus.build(file, tokenizer, max_length=60, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_loss_decides_labels_prompt_lengths_and_the_cache(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    file, cache = write(tmp_path / "p.jsonl", [{"messages": turns}]), tmp_path / "cache"
    built = [
        Corpus.build(file, tokenizer, max_length=60, cache_dir=cache, **loss)
        for loss in ({}, {"completion_only_loss": False}, {"assistant_only_loss": True})
    ]
    assert len({corpus.fingerprint for corpus in built}) == 3
    for corpus in built:
        (ids,), (labels,) = corpus.tokens([0]), corpus.labels([0])
        begin = int(corpus.prompt_length[0])
        assert corpus.dataset[0]["labels"] == labels.tolist()
        assert (labels[:begin] == -100).all()
        assert labels[begin] == ids[begin]
    counted = [int((corpus.labels([0])[0] != -100).sum()) for corpus in built]
    assert counted == [3, int(built[1].length[0]) - 1, 4]


def test_the_first_rows_alone_are_a_corpus_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*make_rows(20), {"prompt": "no answer", "completion": ""}]
    path = write(tmp_path / "pool.jsonl", rows)
    head = Corpus.build(path, tokenizer, max_length=64, cache_dir=tmp_path / "kept", first=8)
    assert sorted(head.ids) == sorted(f"r{number}" for number in range(8))
    with pytest.raises(CorpusError, match="line 21"):  # no cache of the first rows is taken for the whole
        Corpus.build(path, tokenizer, max_length=64, cache_dir=tmp_path / "kept")
