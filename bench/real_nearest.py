"""The arm `nearest`: pool rows nearest to a few trusted ones, by weighted mean hidden states (RDS+).

RDS+ (Ivison et al. 2025, arXiv 2503.01807): a row's embedding is the mean of the last hidden states with
weights that grow with the position, w_t ∝ t; target rows take turns in taking the nearest row that is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pools import distinct_rows, read_rows, write_lines

TOKENS_AT_ONCE = 4096


def nearest_rows(pool: Path, model: Path, data: Path, share: float) -> tuple[Path, float]:
    """A file of the nearest rows, `share` of the pool, exact duplicates left out; and the FLOPs it cost."""
    from real_run import encoded
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from coretune.ledger import forward_flops
    from coretune.training.model_cost import model_shape

    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    distinct = distinct_rows(pool, data)
    ours, wanted = (_embeddings(network, encoded(tokenizer, f)) for f in (distinct, pool / "target.jsonl"))
    amount = max(1, round(share * len(read_rows(pool / "pool.jsonl"))))
    chosen = np.sort(round_robin(ours[0] @ wanted[0].T, amount))
    lines = read_rows(distinct)
    file = write_lines(data / f"{pool.name}-nearest.jsonl", [lines[i] for i in chosen])
    lengths = np.concatenate([ours[1], wanted[1]])
    return file, forward_flops(model_shape(network), lengths, np.zeros_like(lengths))


def round_robin(similarity: np.ndarray, amount: int) -> np.ndarray:
    """(amount,) rows; similarity (rows, targets)."""
    amount = min(amount, len(similarity))
    orders = [iter(np.argsort(-column, kind="stable")) for column in similarity.T]
    taken: dict[int, None] = {}
    while len(taken) < amount:
        for order in orders:
            row = next((int(i) for i in order if int(i) not in taken), None)
            if row is not None and len(taken) < amount:
                taken[row] = None
    return np.array(list(taken))


def _embeddings(network: Any, rows: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) float32 unit embeddings, and the (n,) lengths in tokens."""
    import torch

    from coretune.measure.batches import pack

    lengths = np.array([len(ids) for ids, _ in rows])
    found: np.ndarray | None = None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in pack(lengths, TOKENS_AT_ONCE):
            longest = int(lengths[batch].max())
            ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest)
            for place, row in enumerate(batch):
                ids[place, : lengths[row]] = torch.tensor(rows[row][0])
                mask[place, : lengths[row]] = 1
            hidden = network.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
            weight = mask * torch.arange(1, longest + 1)
            mean = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
            if found is None:
                found = np.zeros((len(rows), mean.shape[1]), np.float32)
            found[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
    assert found is not None
    return found, lengths
