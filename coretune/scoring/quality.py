"""How good is the trained model? The metrics of the `evaluate` section, on held-out rows.

loss, exact_match   one forward pass over the right answers (`evaluate.py`)
rouge               greedy generation, against the right answers (`rouge.py`)
tasks               of lm-eval, with the extra coretune[lm-eval]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from coretune.progress import progress
from coretune.scoring.evaluate import TOKENS_AT_ONCE, Row, evaluate_rows
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.scoring.rouge import rouge


def metrics_of(
    model: Any, tokenizer: Any, rows: Sequence[Row], section: EvaluateSection, bar: bool = False
) -> tuple[dict[str, float], int]:
    """The metrics asked for, and tokens that passed the model for them. ValueError without rows.

    The model's mode is restored; nothing is drawn at random.
    """
    rows = list(rows[: section.rows])
    if not rows:
        raise ValueError("there are 0 rows to evaluate: give evaluate.file, or eval_data")
    found: dict[str, float] = {}
    tokens = 0
    if {"loss", "exact_match"} & set(section.metrics):
        known = evaluate_rows(model, tokenizer, rows)
        found |= {name: known[name] for name in ("loss", "exact_match") if name in section.metrics}
        tokens += sum(len(ids) for ids, _ in rows)
    if "rouge" in section.metrics:
        answers = generate(model, tokenizer, rows, section.max_new_tokens, bar)
        tokens += sum(len(ids) for ids in answers) + sum(prompt for _, prompt in rows)
        wanted = [ids[prompt:] for ids, prompt in rows]
        texts = (tokenizer.batch_decode(some, skip_special_tokens=True) for some in (answers, wanted))
        scores = [rouge(ours, theirs) for ours, theirs in zip(*texts, strict=True)]
        found |= {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return found, tokens


def generate(
    model: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int, bar: bool = False
) -> list[list[int]]:
    """Token ids of the greedy answer to each row's prompt, without what follows its end."""
    answers: list[list[int]] = [[] for _ in rows]
    was_training = model.training
    model.eval()
    try:
        with progress(len(rows), "generating", shown=bar) as shown:
            for batch in _batches(rows, max_new_tokens):
                for row, ids in zip(
                    batch, _answers(model, tokenizer, rows, batch, max_new_tokens), strict=True
                ):
                    answers[row] = ids
                shown.update(len(batch))
    finally:
        model.train(was_training)
    return answers


def task_metrics(
    model: Any, tokenizer: Any, section: EvaluateSection, manager: Any = None
) -> dict[str, float]:
    """The figures of lm-eval's tasks: "<task>/<metric>" -> number. ValueError without the extra.

    manager  a TaskManager that knows tasks of the user's own
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise ValueError("evaluate.tasks needs lm-eval: pip install 'coretune[lm-eval]'") from None
    was_training = model.training
    model.eval()
    try:
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size="auto")
        found = simple_evaluate(
            harness,
            tasks=section.tasks,
            limit=section.task_rows,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=manager,
        )
    finally:
        model.train(was_training)
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, figures in found["results"].items()
        for name, value in figures.items()
        if isinstance(value, float) and "stderr" not in name
    }


def _batches(rows: Sequence[Row], longer: int) -> Iterator[list[int]]:
    """Positions of rows with prompts of like length: at least one, at most TOKENS_AT_ONCE tokens a batch."""
    batch: list[int] = []
    for row in sorted(range(len(rows)), key=lambda row: rows[row][1]):
        if batch and (len(batch) + 1) * (rows[row][1] + longer) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _answers(
    model: Any, tokenizer: Any, rows: Sequence[Row], batch: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Of the rows at these positions. Prompts are padded on the left, so that all answers begin together."""
    prompts = [rows[row][0][: rows[row][1]] for row in batch]
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.full((len(batch), longest), tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for line, prompt in enumerate(prompts):
        ids[line, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[line, longest - len(prompt) :] = 1
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    return [_until(line, tokenizer.eos_token_id) for line in made[:, longest:].tolist()]


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
