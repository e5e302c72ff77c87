"""Metrics of a trained model: ROUGE against brute force, generation against one row at a time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import model_folder, records, write_jsonl
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

from coretune import run
from coretune.config import ConfigError, check_config
from coretune.scoring import quality
from coretune.scoring.evaluate import encode, evaluate
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.scoring.rouge import longest_common, rouge

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@settings(deadline=None, max_examples=100)
@given(a=WORDS, b=WORDS)
def test_the_longest_common_subsequence_is_that_of_trying_all(a: list[str], b: list[str]) -> None:
    inside = {
        tuple(a[i] for i in some)
        for n in range(len(a) + 1)
        for some in itertools.combinations(range(len(a)), n)
    }
    theirs = (
        tuple(b[i] for i in some)
        for n in range(len(b) + 1)
        for some in itertools.combinations(range(len(b)), n)
    )
    assert longest_common(a, b) == max(len(some) for some in theirs if some in inside)


@settings(deadline=None, max_examples=60)
@given(a=WORDS, b=WORDS)
def test_rouge_is_symmetric_and_bounded(a: list[str], b: list[str]) -> None:
    ours, theirs = " ".join(a), " ".join(b)
    found = rouge(ours, theirs)
    assert found == rouge(theirs, ours)
    assert all(0 <= value <= 1 for value in found.values())
    assert found["rougeL"] <= found["rouge1"] + 1e-12
    assert rouge(ours, ours)["rouge1"] == (1.0 if a else 0.0)


def test_rouge_of_a_known_pair() -> None:
    """Lin's own example: police killed the gunman / police kill the gunman / the gunman kill police."""
    wanted = "Police killed the gunman!"
    assert rouge("police kill the gunman", wanted)["rougeL"] == pytest.approx(3 / 4)
    assert rouge("the gunman kill police", wanted)["rougeL"] == pytest.approx(2 / 4)
    assert rouge("the gunman kill police", wanted)["rouge2"] == pytest.approx(1 / 3)
    assert rouge("Über ÉTÉ", "über été")["rouge2"] == 1.0


# ------------------------------------------------------------------------------------------ generation


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained long enough to answer some rows and not others."""
    folder = tmp_path_factory.mktemp("learnt")
    write_jsonl(folder / "pool.jsonl", records(24))
    write_jsonl(folder / "other.jsonl", records(9, seed=5))
    config = {
        "model_name_or_path": str(model_folder()),
        "train_data": str(folder / "pool.jsonl"),
        "eval_data": str(folder / "other.jsonl"),
        "output_dir": str(folder / "run"),
        "coreset": {"method": "random", "budget": "100%", "refresh_every": "never"},
        "evaluate": {"file": str(folder / "pool.jsonl"), "metric": ["loss", "exact_match", "rouge"]},
        "training": {
            "max_steps": 60,
            "per_device_train_batch_size": 8,
            "learning_rate": 2e-2,
            "save_strategy": "no",
            "bf16": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        },
        "report": "end",
    }
    run.train(check_config(config))
    return folder


def test_a_batch_of_prompts_is_answered_as_each_alone(learnt: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(learnt / "run")
    tokenizer = tiny_tokenizer()
    rows = encode(tokenizer, records(24), 96)
    together = quality.generate(model, tokenizer, rows, 12)
    assert together == [quality.generate(model, tokenizer, [row], 12)[0] for row in rows]
    for (ids, prompt), answer in zip(rows[:4], together, strict=False):
        context, slow = torch.tensor([ids[:prompt]]), []
        for _ in range(12):
            token = int(model(input_ids=context).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            slow.append(token)
            context = torch.cat([context, torch.tensor([[token]])], dim=1)
        assert answer == slow


def test_exact_match_by_one_pass_is_exact_match_by_generation(learnt: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(learnt / "run"), tiny_tokenizer()
    rows = encode(tokenizer, records(24), 96)
    wanted = [ids[prompt:] for ids, prompt in rows]
    ended = [ids[: ids.index(tokenizer.eos_token_id)] for ids in wanted]
    answers = quality.generate(model, tokenizer, rows, 40)
    right = sum(ours == theirs for ours, theirs in zip(answers, ended, strict=True)) / len(rows)
    assert right > 0
    assert evaluate(model, tokenizer, records(24), 96)["exact_match"] == right


def test_a_run_saves_the_metrics_that_its_config_asks_for(learnt: Path) -> None:
    found = json.loads((learnt / "run" / "eval_results.json").read_text())
    assert {"eval_exact_match", "eval_rouge1", "eval_rouge2", "eval_rougeL"} <= set(found)
    assert 0 < found["eval_exact_match"] <= found["eval_rougeL"] <= 1
    ledger = json.loads((learnt / "run" / "_coretune" / "ledger.json").read_text())["phases"]["evaluation"]
    assert ledger["rows"] == 9 + 24
    assert ledger["flops"] > 0
    assert "Exact match" in (learnt / "run" / "_coretune" / "report.html").read_text(encoding="utf-8")


def test_metrics_are_those_asked_for_on_the_first_rows() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder()), tiny_tokenizer()
    rows = encode(tokenizer, records(6), 96)
    found, tokens = quality.metrics_of(model, tokenizer, rows, EvaluateSection(metric="loss", rows=2))
    assert set(found) == {"loss"}
    assert tokens == sum(len(ids) for ids, _ in rows[:2])
    assert found["loss"] == pytest.approx(evaluate(model, tokenizer, records(2), 96)["loss"], rel=1e-5)
    with pytest.raises(ValueError, match="0 rows to evaluate: give"):
        quality.metrics_of(model, tokenizer, [], EvaluateSection())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metric": "bleu"}, "evaluate.metric"),
        ({"metrics": "loss"}, "evaluate.metrics"),
        ({"rows": 0}, "evaluate.rows"),
    ],
)
def test_mistakes_in_the_section_are_named(section: dict[str, object], message: str) -> None:
    raw = {
        "model_name_or_path": "m",
        "train_data": "d",
        "output_dir": "o",
        "coreset": {"method": "random", "budget": 5},
        "evaluate": section,
    }
    with pytest.raises(ConfigError, match=message):
        check_config(raw)


def test_without_the_extra_tasks_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'coretune\[lm-eval\]'"):
        quality.task_metrics(None, None, EvaluateSection(tasks=["arc_easy"]))


def test_tasks_of_lm_eval_are_measured_on_the_model_in_memory(tmp_path: Path) -> None:
    """A task of our own on a file of our own: nothing is downloaded."""
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    rows = [{"question": "say: one", "answer": i % 2, "choices": ["one", "two"]} for i in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tiny.yaml").write_text(
        f"""
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    manager = TaskManager(include_path=str(tmp_path))
    section = EvaluateSection(tasks=["tiny_choice"])
    found = quality.task_metrics(model, tiny_tokenizer(), section, manager)
    assert found == {"tiny_choice/acc": 0.5}
