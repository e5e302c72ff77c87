"""Per-example signals of a causal language model, each asked for by name.

    rows ─ sorted by length, packed by a token budget ─► forward ─► head in chunks ─► loss, embeddings
                                                              └─ backward to the chosen layers ─► gradients

Every signal is exact to a batch-1 autograd loop. Scoring uses a forward pass of its own, so fused training
losses change nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure.batches import TokenRows
from coretune.measure.meter import Meter, References
from coretune.measure.moments import Moments
from coretune.measure.passes import autocasting, untouched
from coretune.measure.settings import MeasureSettings
from coretune.types import Array, Measure, Rows

SIGNALS = (
    "loss",
    "response_embedding",
    "prompt_embedding",
    "unconditional_loss",
    "head_gradient",
    "gradient_norm",
    "gradient",
    "alignment",
    "target_cosine",
)


def measurer(
    model: Any,
    rows: TokenRows,
    names: Sequence[str],
    settings: MeasureSettings,
    *,
    pad_token_id: int,
    bos_token_id: int,
    target: TokenRows | None = None,
    moments: Moments | Callable[[], Moments] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measure:
    """The measurement of the signals `names` of `rows` under whatever weights `model` has when it is called.

    model         a transformers causal language model, or a PEFT model around one
    bos_token_id  what the response follows in `unconditional_loss`; the eos token where there is no bos
    target        trusted examples: the reference of `alignment` and of `target_cosine`
    moments       of the optimiser whose preconditioning is asked for; a function of none is called anew at
                  every measurement, as `lambda: Moments.of(trainer.optimizer, model)`
    progress      called with the number of rows finished, after every batch

    The reference is measured anew at every call, under the weights of that moment.
    A row whose signal is not finite, or that has no response, comes back as NaN.
    ValueError: an unknown signal; `target_cosine` without a target; a model or layer that is not supported.
    """
    unknown = sorted(set(names) - set(SIGNALS))
    if unknown:
        raise ValueError(f"unknown signals {unknown}; known are {list(SIGNALS)}")
    if "target_cosine" in names and target is None:
        raise ValueError("target_cosine needs target examples and none are given; set target_data")
    if settings.preconditioner != "none" and moments is None:
        raise ValueError(
            f"preconditioner {settings.preconditioner} needs an optimizer's moments and none are given; "
            "give moments=Moments.from_checkpoint(folder, model), or set preconditioner: none"
        )
    meter = Meter(model, settings, frozenset(names), pad_token_id)

    def measure(asked: Rows) -> dict[str, Array]:
        asked = np.asarray(asked, dtype=np.int64)
        tokens, prompt_length = rows.tokens(asked), rows.prompt_length[asked]
        with untouched(model), autocasting(meter.device, settings.autocast):
            meter.check_head(tokens)
            references = References(
                _reference_gradient(meter, rows, target) if "alignment" in names else None,
                _target_direction(meter, target) if target is not None and "target_cosine" in names else None,
            )
            found = meter.signals(tokens, prompt_length, frozenset(names), references, progress)
            if "unconditional_loss" in names:
                found["unconditional_loss"] = _unconditional_loss(meter, tokens, prompt_length, bos_token_id)
        return {name: found[name] for name in names}

    return measure


def _reference_gradient(meter: Meter, rows: TokenRows, target: TokenRows | None) -> dict[str, Tensor]:
    """Mean gradient of the target's rows, or of a seeded sample of the pool's, by parameter."""
    if target is not None:
        return meter.mean_gradient(*_whole(target))
    n = len(rows.prompt_length)
    size = min(meter.settings.reference_rows, n)
    sample = np.sort(np.random.default_rng(meter.settings.seed).choice(n, size, replace=False)).astype(
        np.int64
    )
    return meter.mean_gradient(rows.tokens(sample), rows.prompt_length[sample])


def _target_direction(meter: Meter, target: TokenRows) -> Tensor:
    """(projection_dim,) float32: mean unit projected gradient of the target's rows.

    A mean of cosines is the inner product with the mean of the unit vectors.
    """
    features = meter.signals(*_whole(target), frozenset({"gradient"}), References(), None)["gradient"]
    features = features[np.isfinite(features).all(1)]
    if not len(features):
        raise ValueError(
            "no target example has a finite gradient; check the target data and the model's weights"
        )
    return functional.normalize(torch.from_numpy(features), dim=1).mean(0).to(meter.device)


def _unconditional_loss(
    meter: Meter, tokens: Sequence[Array], prompt_length: Array, bos_token_id: int
) -> Array:
    """(m,) float32: token-mean loss of each response after the bos token alone."""
    alone = [
        np.concatenate([[bos_token_id], row[max(int(begin), 1) :]]).astype(np.int64)
        for row, begin in zip(tokens, prompt_length, strict=True)
    ]
    return meter.signals(alone, np.ones(len(alone), dtype=np.int64), frozenset({"loss"}), References(), None)[
        "loss"
    ]


def _whole(rows: TokenRows) -> tuple[Sequence[Array], Array]:
    everything = np.arange(len(rows.prompt_length), dtype=np.int64)
    return rows.tokens(everything), rows.prompt_length
