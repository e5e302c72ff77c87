"""Per-example signals of a causal language model, each asked for by name.

    rows ─ sorted by length, packed by a token budget ─► forward ─► head in chunks ─► loss, embeddings
                                                              └─ backward to the chosen layers ─► gradients

What the loss counts is the response, holes and all: of several turns, those of the assistant.
`unconditional_loss` and `kn_gradient` are of the response after the bos token alone, in a pass of its own:
of the same target tokens, divided by the same number of them, so that the rest, `if_gradient`, is the
gradient of the instruction's part of the loss alone. [BRIEF, Shen et al. 2026, Eqs. 1, 4-11]

    empty_prompt_loss   the same after what all prompts of the pool end with, as the header of an answer: a
                        response alone is unlikely for reasons that have nothing to do with its prompt

    L_SFT = L_KN + L_IF       kn_gradient = P Γ(∇L_KN)       if_gradient = P (Γ(∇L_SFT) − Γ(∇L_KN))

Every signal is exact to a batch-1 autograd loop. Scoring uses a forward pass of its own, so fused training
losses change nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure.batches import TokenRows
from coretune.measure.kept import Once, anew
from coretune.measure.meter import PROJECTED, References, SignalMeter
from coretune.measure.moments import Moments
from coretune.measure.passes import autocasting, untouched
from coretune.measure.settings import MeasureSettings
from coretune.types import EMPTY_PROMPT_LOSS, IGNORED, TARGET_SIMILARITY, Array, Measure, Rows

SIGNALS = (
    "loss",
    "response_embedding",
    "prompt_embedding",
    "unconditional_loss",
    EMPTY_PROMPT_LOSS,
    "head_gradient",
    "gradient_norm",
    "gradient",
    "kn_gradient",
    "if_gradient",
    "target_cosine",
    "weighted_embedding",
    TARGET_SIMILARITY,
)
#: Signals that compare with each example of a target.
COMPARED = ("target_cosine", TARGET_SIMILARITY)

ENDINGS, LONGEST_ENDING = 64, 32  # prompts that are compared; tokens

#: Signals of the response after the bos token alone, and what they are of that row.
WITHOUT_PROMPT = {"unconditional_loss": "loss", "kn_gradient": "gradient"}


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
    directions: Sequence[Mapping[str, Tensor]] = (),
    progress: Callable[[int], object] | None = None,
    once: Once = anew,
) -> Measure:
    """The measurement of the signals `names` of `rows` under whatever weights `model` has when it is called.

    model         a transformers causal language model, or a PEFT model around one
    bos_token_id  what the response follows in `unconditional_loss`; the eos token where there is no bos
    target        m trusted examples: the reference of `target_cosine` and of `target_similarity`, which are
                  (n, m): the cosine of a row's gradient, or of its `weighted_embedding`, with each example's.
                  The examples' own gradients are not preconditioned: LESS compares the step of an example
                  with the target's gradient
    moments       of the optimiser whose preconditioning is asked for; a function of none is called anew at
                  every measurement, as `lambda: Moments.of(trainer.optimizer, model)`
    directions    the first coordinates of projected gradients are along these (see `SignalMeter`)
    progress      called with the number of rows finished, after every batch
    once          when the reference is measured: `anew` at every call, under the weights of that moment, or
                  with `Kept` once for as long as they stay

    Preconditioned are `gradient`, `kn_gradient`, `if_gradient` and the pool's side of `target_cosine`, not
    `gradient_norm`.
    A row whose signal is not finite, or that has no response, comes back as NaN.
    ValueError: an unknown signal; `target_cosine` without a target; a preconditioner without moments; a model
    or layer that is not supported. At a measurement: moments that are not of the parameters measured.
    """
    passes = _Passes.of(frozenset(names))
    ending = common_ending(rows, bos_token_id) if passes.empty else np.zeros(0, np.int64)
    wanted = settings.preconditioner if passes.names & PROJECTED else "none"
    _refuse(names, wanted, target, moments)
    meter = SignalMeter(model, settings, passes.names, pad_token_id, directions)

    def measure(asked: Rows) -> dict[str, Array]:
        asked = np.asarray(asked, dtype=np.int64)
        tokens, labels = rows.tokens(asked), rows.labels(asked)
        with untouched(model), autocasting(meter.device, settings.autocast):
            meter.check_head()
            precondition = None
            if wanted != "none" and moments is not None:
                precondition = meter.preconditioner(moments() if callable(moments) else moments)
            references = once(lambda: _references(meter, names, target))
            found = meter.signals(tokens, labels, passes.whole, references, progress, precondition)
            alone: dict[str, Array] = {}
            if passes.alone:
                responses = _after_bos(tokens, labels, bos_token_id)
                rest = None if passes.whole else progress
                alone = meter.signals(*responses, passes.alone, References(), rest, precondition)
            if passes.empty:
                responses = _after_ending(ending, tokens, labels, rows.prompt_length[asked])
                rest = None if passes.whole or passes.alone else progress
                empty = meter.signals(*responses, frozenset({"loss"}), References(), rest, None)
                found |= {EMPTY_PROMPT_LOSS: empty["loss"]}
        return _named(names, found, alone)

    return measure


def _refuse(
    names: Sequence[str],
    preconditioner: str,
    target: TokenRows | None,
    moments: Moments | Callable[[], Moments] | None,
) -> None:
    unknown = sorted(set(names) - set(SIGNALS))
    if unknown:
        raise ValueError(f"unknown signals {unknown}; known are {list(SIGNALS)}")
    if target is None and (compared := [name for name in COMPARED if name in names]):
        raise ValueError(f"{compared[0]} needs target examples and none are given; set target_data")
    if preconditioner != "none" and moments is None:
        raise ValueError(
            f"preconditioner {preconditioner} needs an optimizer's moments and none are given; "
            "give moments=Moments.from_checkpoint(folder, model), or set preconditioner: none"
        )


@dataclass(frozen=True)
class _Passes:
    """What is measured in the pass over whole rows, in the one over the responses alone, and whether there is
    one over the responses after an empty prompt."""

    whole: frozenset[str]
    alone: frozenset[str]
    empty: bool

    @property
    def names(self) -> frozenset[str]:
        return self.whole | self.alone | (frozenset({"loss"}) if self.empty else frozenset())

    @staticmethod
    def of(names: frozenset[str]) -> _Passes:
        alone = {WITHOUT_PROMPT[name] for name in names & WITHOUT_PROMPT.keys()}
        whole = names - WITHOUT_PROMPT.keys() - {"if_gradient", EMPTY_PROMPT_LOSS}
        empty = EMPTY_PROMPT_LOSS in names
        if "if_gradient" in names:
            return _Passes(whole | {"gradient"}, frozenset(alone | {"gradient"}), empty)
        return _Passes(whole, frozenset(alone), empty)


def _named(names: Sequence[str], whole: dict[str, Array], alone: dict[str, Array]) -> dict[str, Array]:
    """The signals asked for, from those of the two passes."""
    found = {name: alone[WITHOUT_PROMPT[name]] for name in names if name in WITHOUT_PROMPT}
    if "if_gradient" in names:
        # A projection is linear: the difference of two projections is that of the difference.
        found["if_gradient"] = whole["gradient"] - alone["gradient"]
    return {name: found[name] if name in found else whole[name] for name in names}


def _references(meter: SignalMeter, names: Sequence[str], target: TokenRows | None) -> References:
    return References(
        _of_target(meter, target, "gradient") if "target_cosine" in names else None,
        _of_target(meter, target, "weighted_embedding") if TARGET_SIMILARITY in names else None,
    )


def _of_target(meter: SignalMeter, target: TokenRows | None, name: str) -> Tensor:
    """(m, …) float32 unit: that signal of each of the target's examples.

    ValueError names an example without a finite one.
    """
    assert target is not None
    found = meter.signals(*_whole(target), frozenset({name}), References(), None)[name]
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of the {len(found)} target examples have no finite {name}, the first is number "
            f"{bad[0] + 1}: check the target data and the model's weights"
        )
    return functional.normalize(torch.from_numpy(found), dim=1).to(meter.device)


def _after_bos(
    tokens: Sequence[Array], labels: Sequence[Array], bos_token_id: int
) -> tuple[list[Array], list[Array]]:
    """The tokens of each row that count, after the bos token alone, and their targets."""
    alone, targets = [], []
    for ids, wanted in zip(tokens, labels, strict=True):
        counted = 1 + np.flatnonzero(wanted[1:] != IGNORED)
        alone.append(np.concatenate([[bos_token_id], ids[counted]]).astype(np.int64))
        targets.append(np.concatenate([[IGNORED], wanted[counted]]).astype(np.int64))
    return alone, targets


def _after_ending(
    ending: Array, tokens: Sequence[Array], labels: Sequence[Array], starts: Array
) -> tuple[list[Array], list[Array]]:
    """Each row's tokens from `starts` on after these instead of its prompt, and their targets."""
    begins = [max(int(start), 1) for start in starts]
    prompt = np.full(len(ending), IGNORED)
    alone = [np.concatenate([ending, ids[i:]]) for ids, i in zip(tokens, begins, strict=True)]
    return alone, [np.concatenate([prompt, wanted[i:]]) for wanted, i in zip(labels, begins, strict=True)]


def common_ending(rows: TokenRows, bos_token_id: int) -> Array:
    """(e,) int64, e >= 1: what the prompts of the rows end with, after the bos token.

    Of ENDINGS rows, evenly spaced; from its last bos token on where it holds one.
    """
    n = len(rows.prompt_length)
    some = np.unique(np.linspace(0, n - 1, min(n, ENDINGS)).astype(np.int64))
    prompts = [
        np.asarray(ids)[:end] for ids, end in zip(rows.tokens(some), rows.prompt_length[some], strict=True)
    ]
    shared = min(LONGEST_ENDING, *(len(prompt) for prompt in prompts))
    backwards = np.array([prompt[len(prompt) - shared :][::-1] for prompt in prompts], np.int64)
    same = (backwards == backwards[:1]).all(axis=0)
    ending = backwards[0, : int(np.argmin(np.append(same, False)))][::-1]
    at = np.flatnonzero(ending == bos_token_id)
    return ending[at[-1] :] if len(at) else np.concatenate([[bos_token_id], ending]).astype(np.int64)


def _whole(rows: TokenRows) -> tuple[Sequence[Array], Sequence[Array]]:
    everything = np.arange(len(rows.prompt_length), dtype=np.int64)
    return rows.tokens(everything), rows.labels(everything)
