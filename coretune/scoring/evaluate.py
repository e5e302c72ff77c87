"""How well a model answers held-out rows: the right answer's loss, and whether greedy generation gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from coretune.data.encode import encode_batch

#: Logits held at once; 64 Mi of 32-bit floats are 256 MiB.
LOGITS_AT_ONCE = 2**26
#: Longest batch in tokens, padding included: above this a CPU gains nothing from a larger one.
TOKENS_AT_ONCE = 4096

Row = tuple[list[int], int]  # token ids of prompt and response, and how many of them are the prompt's


def evaluate(
    model: torch.nn.Module,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    max_length: int | None = None,
) -> dict[str, float]:
    """Held-out loss and exact match of a causal language model on records with `prompt` and `completion`.

    loss         nats a response token: the mean over each response, then the mean over records
    exact_match  share of records whose answer greedy generation gives, token for token up to its end

    Nothing is generated for it. Greedy generation gives the answer exactly when, with the answer so far as
    context, each next answer token is the most likely one; the one forward pass of the loss shows that for
    all of them at once. An answer spelt with other tokens than the tokenizer's own counts as a miss.

    Rows are encoded as for training, with a chat template or without; prompts are cut from the left to
    max_length tokens (None: the tokenizer's own limit). The model's mode is restored; nothing is drawn at
    random. ValueError when there are no records or when some cannot be encoded.
    """
    if not records:
        raise ValueError("there are 0 records to evaluate; give at least one")
    rows = encode(tokenizer, records, tokenizer.model_max_length if max_length is None else max_length)
    return evaluate_rows(model, tokenizer, rows)


def evaluate_rows(model: torch.nn.Module, tokenizer: Any, rows: Sequence[Row]) -> dict[str, float]:
    """`evaluate` on rows that are encoded already."""
    device = next(model.parameters()).device
    limit = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // len(tokenizer))
    was_training = model.training
    model.eval()
    loss, right = 0.0, 0
    try:
        for batch in _batches(rows, limit):
            ids, mask, response = (tensor.to(device) for tensor in _pad(batch))
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            batch_loss, batch_right = _score(logits, ids[:, 1:], response[:, 1:], tokenizer.eos_token_id)
            loss += batch_loss
            right += batch_right
    finally:
        model.train(was_training)
    return {"loss": loss / len(rows), "exact_match": right / len(rows)}


def encode(tokenizer: Any, records: Sequence[Mapping[str, Any]], max_length: int) -> list[Row]:
    """The rows of records with `prompt` and `completion`, token for token those that training would see."""
    batch: dict[str, Sequence[Any]] = {
        "record": [json.dumps(dict(record)) for record in records],
        "problem": [None] * len(records),
        "file": ["records"] * len(records),
        "number": range(1, len(records) + 1),
    }
    encoded = encode_batch(batch, tokenizer, {"records": "prompt/completion"}, {}, max_length)
    bad = [(place, problem) for place, problem in enumerate(encoded["problem"], 1) if problem is not None]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(records)} records cannot be evaluated, first record {bad[0][0]}: {bad[0][1]}"
        )
    tokens = [ids.tolist() for ids in encoded["input_ids"]]
    return list(zip(tokens, encoded["prompt_length"], strict=True))


def _batches(rows: Sequence[Row], limit: int) -> Iterator[list[Row]]:
    """Rows of like length together: at least one row and at most `limit` tokens a batch, padding included."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if batch and (len(batch) + 1) * len(row[0]) > limit:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pad(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and response mask, each (rows, longest), padded on the right."""
    shape = (len(batch), max(len(ids) for ids, _ in batch))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    response = torch.zeros(shape, dtype=torch.bool)
    for row, (tokens, prompt_length) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        response[row, prompt_length : len(tokens)] = True
    return ids, mask, response


def _score(
    logits: torch.Tensor, targets: torch.Tensor, response: torch.Tensor, end: int | None
) -> tuple[float, int]:
    """Sum over rows of the token-mean response loss, and the number of rows answered exactly.

    logits (rows, tokens, vocabulary), targets and response (rows, tokens). What a template writes after the
    end of sequence counts in the loss, as it does in training, but not in the match: generation has stopped.
    """
    row_of = response.nonzero()[:, 0]  # (response tokens,)
    wanted = targets[response]
    at_response = logits[response].float()  # (response tokens, vocabulary)
    token_loss = cross_entropy(at_response, wanted, reduction="none")
    lengths = response.sum(1)
    loss = torch.zeros(len(lengths), device=logits.device).index_add_(0, row_of, token_loss) / lengths

    ends = (targets == end) & response if end is not None else torch.zeros_like(response)
    after_end = (ends.cumsum(1) - ends.int()) > 0
    wrong = (at_response.argmax(-1) != wanted) & ~after_end[response]
    missed = torch.zeros(len(lengths), dtype=torch.long, device=logits.device).index_add_(
        0, row_of, wrong.long()
    )
    return float(loss.double().sum()), int((missed == 0).sum())
