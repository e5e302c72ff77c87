"""The generated pool: exact shares, right answers, hidden labels; and the shipped model that fits it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from coretune.playground import BASE_MODEL, make_pool
from coretune.playground.skills import SKILLS, WORDS
from coretune.scoring.evaluate import encode, evaluate

SHIPPED = AutoTokenizer.from_pretrained(BASE_MODEL)


def answer(record: dict[str, str]) -> str:
    """The right answer, worked out again from the prompt's text by means of its own."""
    items = record["prompt"].split(": ")[1].split()
    slow = {
        "repeat": lambda: " ".join(items),
        "reverse": lambda: " ".join(items[::-1]),
        "first": lambda: items[0],
        "last": lambda: items[-1],
        "count": lambda: str(len(items)),
        "sort": lambda: " ".join(items[i] for i in np.argsort(items)),
        "longest": lambda: next(w for w in items if all(len(w) > len(v) for v in items if v != w)),
        "initials": lambda: " ".join(w[0] for w in items).upper(),
        "remove": lambda: " ".join(w for w in items[1:] if w != items[0]),
        "add": lambda: str(int(items[0]) + int(items[1])),
        "larger": lambda: str(max(int(items[0]), int(items[1]))),
        "next": lambda: str(int(items[0]) + 1),
    }
    return slow[record["source"]]()


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(40, 600),
    copies=st.sampled_from([0.0, 0.3, 0.5]),
    wrong=st.sampled_from([0.0, 0.2, 0.4]),
)
def test_labels_tell_the_truth(seed: int, rows: int, copies: float, wrong: float) -> None:
    pool = make_pool(seed, rows, copies, wrong, held_out=2)
    assert len(pool.records) == len(pool.labels) == rows
    kinds = Counter(pool.labels.values())
    assert (kinds["copy"], kinds["wrong"]) == (round(copies * rows), round(wrong * rows))
    by_kind: dict[str, list[dict[str, str]]] = {"clean": [], "copy": [], "wrong": []}
    for record in pool.records:
        assert set(record) == {"id", "prompt", "completion", "source"}
        by_kind[pool.labels[record["id"]]].append(record)
    assert all(r["completion"] == answer(r) for r in by_kind["clean"] + by_kind["copy"])
    assert all(r["completion"] != answer(r) for r in by_kind["wrong"])
    distinct = [r["prompt"] for r in by_kind["clean"] + by_kind["wrong"]]
    assert len(set(distinct)) == len(distinct)
    originals = {r["prompt"] for r in by_kind["clean"]}
    assert all(r["prompt"] in originals for r in by_kind["copy"])


def test_held_out_rows_are_balanced_right_and_apart() -> None:
    pool = make_pool(3, 500, held_out=7)
    assert Counter(r["source"] for r in pool.held_out) == {skill.name: 7 for skill in SKILLS}
    assert Counter(r["source"] for r in pool.target) == {skill.name: 5 for skill in SKILLS}
    assert all(r["completion"] == answer(r) for r in pool.held_out + pool.target)
    prompts = [{r["prompt"] for r in part} for part in (pool.records, pool.held_out, pool.target)]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_neither_place_nor_id_predicts_the_label() -> None:
    pool = make_pool(1, 2000)
    assert [r["id"] for r in pool.records] == sorted(r["id"] for r in pool.records)
    wrong = np.array([pool.labels[r["id"]] == "wrong" for r in pool.records])
    assert abs(wrong[:1000].mean() - wrong[1000:].mean()) < 0.1


def test_skills_are_uneven_and_copies_few() -> None:
    pool = make_pool(0, 2000)
    distinct = [r for r in pool.records if pool.labels[r["id"]] != "copy"]
    counts = Counter(r["source"] for r in distinct).most_common()
    assert counts[0][1] > 10 * counts[-1][1]
    copies = Counter(r["prompt"] for r in pool.records if pool.labels[r["id"]] == "copy")
    assert len(copies) == 30


def test_same_seed_same_pool() -> None:
    assert make_pool(4, 300) == make_pool(4, 300)
    assert make_pool(4, 300).records != make_pool(5, 300).records


@pytest.mark.parametrize(("copies", "wrong"), [(0.6, 0.4), (0.9, 0.3), (-0.1, 0.2)])
def test_shares_that_leave_nothing_clean_are_refused(copies: float, wrong: float) -> None:
    with pytest.raises(ValueError, match="rows clean"):
        make_pool(0, 100, copies, wrong)


def test_a_skill_that_runs_dry_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer rows"):
        make_pool(0, 100, held_out=3000)


def test_command_writes_what_the_function_makes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coretune.playground", str(tmp_path), "--rows", "120", "--seed", "2"]
    subprocess.run(command, check=True, capture_output=True)
    read = {path.name: [json.loads(line) for line in path.open()] for path in tmp_path.iterdir()}
    pool = make_pool(2, 120)
    assert read["pool.jsonl"] == pool.records
    assert read["eval.jsonl"] == pool.held_out
    assert read["target.jsonl"] == pool.target
    assert {row["id"]: row["kind"] for row in read["labels.jsonl"]} == pool.labels


def test_making_a_pool_needs_no_torch() -> None:
    code = "import sys, coretune.playground; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that makes the shipped model."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("playground_model")


def test_shipped_tokenizer_is_the_one_the_script_makes(script: Any) -> None:
    made, shipped = script.make_tokenizer(), AutoTokenizer.from_pretrained(BASE_MODEL)
    assert made.get_vocab() == shipped.get_vocab()
    assert made.chat_template == shipped.chat_template
    assert all(len(shipped.encode(word)) == 1 for word in WORDS)


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=40).filter(lambda text: not text.startswith(" ")))
def test_tokenizer_gives_any_text_back(text: str) -> None:
    assert SHIPPED.decode(SHIPPED.encode(text, add_special_tokens=False)) == text


def test_template_marks_the_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    messages = [
        {"role": "user", "content": "Name the larger number: 3 7"},
        {"role": "assistant", "content": "7"},
    ]
    marked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    whole, prompt_length = encode(
        tokenizer, [{"prompt": messages[0]["content"], "completion": messages[1]["content"]}], 256
    )[0]
    assert marked["input_ids"] == whole
    assert marked["assistant_masks"] == [0] * prompt_length + [1] * (len(whole) - prompt_length)


def test_pretraining_batches_depend_on_the_seed_alone(script: Any) -> None:
    one, two, other = (
        script.pretraining_batch(SHIPPED, np.random.default_rng(seed), 3) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0][:, :9], other[0][:, :9])


def test_shipped_model_is_small_and_loads_in_single_precision() -> None:
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) <= 3_000_000
    assert AutoModelForCausalLM.from_pretrained(BASE_MODEL).dtype == torch.float32


def test_shipped_model_has_to_learn_the_instructions() -> None:
    """It fails the instructions, but solves the same tasks in its own notation."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(BASE_MODEL),
        AutoModelForCausalLM.from_pretrained(BASE_MODEL),
    )
    assert evaluate(model, tokenizer, make_pool(8, 60, held_out=5).held_out)["exact_match"] < 0.05
    rng = np.random.default_rng(8)
    tokenizer.chat_template = None
    own = []
    for _ in range(10):
        for skill in SKILLS:
            arguments = skill.draw(rng)
            own.append(
                {
                    "prompt": f"{tokenizer.bos_token}{skill.name}: {' '.join(arguments)} ->",
                    "completion": " " + skill.solve(arguments),
                }
            )
    assert evaluate(model, tokenizer, own)["exact_match"] > 0.7
