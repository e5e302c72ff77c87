"""`trajectory`: each row's gradients along a training run, stacked over its snapshots.

    a_i = [√η_1 P_1ᵀ g_i,1 | … | √η_T P_Tᵀ g_i,T]      g_i,t: gradient of row i's loss at θ_t (preconditioned)

    snapshot t ─ weights in ─► gradients, projected ─ weights out ─► block t;  at the last, every other signal

⟨a_i, a_j⟩ estimates Σ_t η_t ⟨g_i,t, g_j,t⟩: how much steps on row i lower row j's loss along the way (TracIn,
Pruthi et al. 2020; LESS, Xia et al. 2024). A run's weights, rate and moments of the moment are a trajectory
of one snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coretune.measure.bases import Basis, SpecialTokens, fit_bases
from coretune.measure.batches import TokenRows
from coretune.measure.kept import Once, anew
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import SIGNALS, measurer
from coretune.measure.snapshots import Snapshot, swapped
from coretune.types import TRAJECTORY, Array, Measure, Rows


def snapshot_measurer(
    model: Any,
    rows: TokenRows,
    names: Sequence[str],
    settings: MeasureSettings,
    snapshots: Sequence[Snapshot],
    *,
    pad_token_id: int,
    bos_token_id: int,
    target: TokenRows | None = None,
    progress: Callable[[int], object] | None = None,
    bases: Sequence[Basis] | None = None,
    once: Once = anew,
) -> Measure:
    """The measurement of `names` of `rows` at checkpoints of a warm-up run.

    `trajectory` over all its snapshots; every other signal, as `signals.measurer` has it, at the last one,
    with its moments, in a pass of its own.

    snapshots  in the order of the training; a row's `trajectory` is (T · projection_dim,) float32
    target     of the signals that read one
    progress   called with the rows finished after every batch: in all, rows times the passes (`passes_of`)
    once       when what the other signals compare with is measured (see `signals.measurer`)
    bases      of `fit_bases`, where several measurements are to share them; None: found at the first call

    After every call the model has its own weights again, bit for bit. A row whose gradient is not finite at
    one of the snapshots is NaN. ValueError: no snapshot; one without the moments that the preconditioner
    needs; whatever `measurer` refuses.
    """
    _refuse(names, settings, snapshots)
    others = [name for name in names if name != TRAJECTORY]
    special = SpecialTokens(pad_token_id=pad_token_id, bos_token_id=bos_token_id)
    last = measurer(
        model,
        rows,
        others or ["gradient"],  # also to be refused now, before a long measurement, what none can do
        settings,
        target=target,
        moments=snapshots[-1].moments,
        progress=progress,
        once=once,
        **special,
    )
    known = list(bases or ())

    def measure(asked: Rows) -> dict[str, Array]:
        asked = np.asarray(asked, dtype=np.int64)
        found: dict[str, Array] = {}
        if others:
            with swapped(model, snapshots[-1]):
                found |= last(asked)
        if TRAJECTORY in names:
            if not known:
                known.extend(fit_bases(model, rows, settings, snapshots, **special))
            pairs = zip(snapshots, known, strict=True)
            blocks = [_block(model, rows, asked, *pair, special, progress) for pair in pairs]
            found[TRAJECTORY] = np.concatenate(blocks, axis=1)
            found[TRAJECTORY][~np.isfinite(found[TRAJECTORY]).all(axis=1)] = np.nan
        return {name: found[name] for name in names}

    return measure


def passes_of(names: Sequence[str], snapshots: Sequence[Snapshot]) -> int:
    """How often `snapshot_measurer` passes over the rows."""
    return (len(snapshots) if TRAJECTORY in names else 0) + any(name != TRAJECTORY for name in names)


def references(
    model: Any,
    rows: TokenRows,
    targets: Sequence[TokenRows],
    shares: Sequence[float],
    settings: MeasureSettings,
    snapshots: Sequence[Snapshot],
    *,
    pad_token_id: int,
    bos_token_id: int,
    bases: Sequence[Basis] | None = None,
) -> Mapping[str, Array]:
    """What pursuits aim at, for `Pool.references`.

    "trajectory" (S, T · projection_dim) float32: b of each target, the mean of its examples' trajectories in
    the pool's bases; "share" (S,) float32, which add up to 1.

    rows    the pool, of a sample of which gradient_pca is found
    shares  > 0, each target's part of the budget; brought to sum 1

    Preconditioned as the pool's [choice]: a pursuit adds rows up to b, so both have to be updates of the same
    kind. (LESS, which ranks, takes plain gradients of the target.) ValueError: no target; a share that is not
    positive; a target without a finite gradient.
    """
    if not targets or len(targets) != len(shares) or not min(shares) > 0:
        raise ValueError(
            f"{len(targets)} targets with shares {list(shares)}: give each target a share above 0"
        )
    special = SpecialTokens(pad_token_id=pad_token_id, bos_token_id=bos_token_id)
    if bases is None:
        bases = fit_bases(model, rows, settings, snapshots, **special)
    means = []
    for number, target in enumerate(targets):
        measure = snapshot_measurer(model, target, [TRAJECTORY], settings, snapshots, bases=bases, **special)
        stacked = measure(np.arange(len(target.prompt_length)))[TRAJECTORY]
        stacked = stacked[np.isfinite(stacked).all(axis=1)]
        if not len(stacked):
            raise ValueError(
                f"no example of target {number} has a finite gradient at every snapshot; check its data"
            )
        means.append(stacked.mean(axis=0, dtype=np.float64))
    share = np.asarray(shares, dtype=np.float64)
    return {
        TRAJECTORY: np.stack(means).astype(np.float32),
        "share": (share / share.sum()).astype(np.float32),
    }


def _block(
    model: Any,
    rows: TokenRows,
    asked: Rows,
    snapshot: Snapshot,
    basis: Basis,
    special: SpecialTokens,
    progress: Callable[[int], object] | None,
) -> Array:
    """(m, projection_dim) float32: √η_t P_tᵀ g at one snapshot.

    The projections are made here and dropped, snapshot after snapshot: they may be larger than an adapter.
    """
    measure = measurer(
        model,
        rows,
        ["gradient"],
        basis.settings,
        moments=snapshot.moments,
        directions=basis.directions,
        progress=progress,
        **special,
    )
    with swapped(model, snapshot):
        block: Array = np.float32(snapshot.learning_rate**0.5) * basis.block(measure, asked)
    return block


def _refuse(names: Sequence[str], settings: MeasureSettings, snapshots: Sequence[Snapshot]) -> None:
    unknown = sorted(set(names) - {*SIGNALS, TRAJECTORY})
    if unknown:
        raise ValueError(f"unknown signals {unknown}; known are {[*SIGNALS, TRAJECTORY]}")
    if not snapshots:
        raise ValueError("there are no checkpoints to measure at; give at least one")
    bare = [snapshot.name for snapshot in snapshots if snapshot.moments is None]
    if bare and settings.preconditioner != "none":
        raise ValueError(
            f"preconditioner {settings.preconditioner} needs the optimizer's moments, and snapshot {bare[0]} "
            "was read without; read it with_moments=True, or set preconditioner: none"
        )
