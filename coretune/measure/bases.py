"""Bases of a trajectory: what each snapshot's gradients are projected on, P_t (p, projection_dim).

    rademacher, sjlt   seeded, of no data: inner products are kept in expectation
    gradient_pca       principal directions of a sample's gradients, found anew at every snapshot
    parameter_pca      principal directions of the path of training through parameter space, then seeded ones

[choice] Every snapshot has seeds of its own. LESS (Xia et al. 2024) projects all checkpoints alike; but the
gradients of neighbouring snapshots are nearly the same, and one projection would err T times in the same way,
where the errors of independent ones average out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from coretune.measure.batches import TokenRows
from coretune.measure.meter import SignalMeter
from coretune.measure.parameters import choose
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.snapshots import Snapshot, swapped
from coretune.types import Array, Measure, Rows

#: Of gradient_pca [choice]: gradients are sketched to so many times the dimension asked for, and the sample
#: has so many rows a dimension.
PCA_SKETCH = 4
PCA_ROWS = 2
WIDE_ENTRIES = 1 << 26  # of wide sketches held at once: 256 MiB of float32


class SpecialTokens(TypedDict):
    """What `measurer` needs to know of the vocabulary."""

    pad_token_id: int
    bos_token_id: int


@dataclass(frozen=True)
class Basis:
    """P_t of one snapshot.

    settings    of the projection that a measurement makes, with the snapshot's seed
    directions  by parameter: the first coordinates of that projection are along these
    matrix      (w, projection_dim) float32, what it is multiplied by; None = nothing
    """

    settings: MeasureSettings
    directions: Sequence[Mapping[str, Tensor]] = ()
    matrix: Array | None = None

    def block(self, measure: Measure, rows: Rows) -> Array:
        """(m, projection_dim) float32: P_tᵀ g of these rows, of a measurement of `gradient`."""
        if self.matrix is None:
            return measure(rows)["gradient"]
        step = max(1, WIDE_ENTRIES // len(self.matrix))
        parts = [measure(rows[i : i + step])["gradient"] @ self.matrix for i in range(0, len(rows), step)]
        return np.concatenate([*parts, np.zeros((0, self.matrix.shape[1]), np.float32)])


def refuse_live(settings: MeasureSettings) -> None:
    """ValueError for a basis that a measurement during training, which has one snapshot, cannot have."""
    if settings.basis == "parameter_pca":
        raise ValueError(
            "basis parameter_pca needs several checkpoints, and during training there is one: set "
            "refresh_every to never, or take another basis"
        )


def fit_bases(
    model: Any,
    rows: TokenRows,
    settings: MeasureSettings,
    snapshots: Sequence[Snapshot],
    *,
    pad_token_id: int,
    bos_token_id: int,
) -> list[Basis]:
    """The bases of these snapshots, for the pool `rows`; the same at every call with the same arguments.

    gradient_pca measures a sample of the pool at each snapshot, parameter_pca takes T² inner products of the
    weights that count, the others nothing. ValueError: a basis that cannot have projection_dim dimensions.
    """
    seeds = [seeded(settings, behind) for behind in reversed(range(len(snapshots)))]
    if settings.basis == "parameter_pca":
        names = choose(model, settings.last_blocks, settings.parameters).names
        directions = path_directions(snapshots, names, settings.projection_dim)
        return [_on_path(model, own, directions, pad_token_id) for own in seeds]
    if settings.basis == "gradient_pca":
        pairs = zip(seeds, snapshots, strict=True)
        special = SpecialTokens(pad_token_id=pad_token_id, bos_token_id=bos_token_id)
        return [_on_sample(model, rows, own, snapshot, special) for own, snapshot in pairs]
    return [Basis(own) for own in seeds]


def _on_sample(
    model: Any, rows: TokenRows, settings: MeasureSettings, snapshot: Snapshot, special: SpecialTokens
) -> Basis:
    """gradient_pca's basis at one snapshot."""
    wide = replace(settings, projection_dim=PCA_SKETCH * settings.projection_dim, basis="rademacher")
    measure = measurer(model, rows, ["gradient"], wide, moments=snapshot.moments, **special)
    with swapped(model, snapshot):
        sample = measure(sampled(len(rows.prompt_length), settings))["gradient"]
    return Basis(wide, matrix=principal(sample, settings.projection_dim))


def _on_path(
    model: Any, settings: MeasureSettings, directions: Sequence[Mapping[str, Tensor]], pad_token_id: int
) -> Basis:
    """parameter_pca's basis at one snapshot: [Uᵀg, S(g − U Uᵀg)], with S the seeded projection.

    S is linear, so S(g − U Uᵀg) = S(g) − S(U) Uᵀg: what the meter gives, [Uᵀg, S(g)], times a matrix.
    """
    meter = SignalMeter(model, settings, frozenset({"gradient"}), pad_token_id, directions)
    count = len(directions)
    projected = torch.zeros(count, settings.projection_dim, device=meter.device)  # [I, S(U)]
    for along in meter.along.values():
        along.add_part(projected, slice(0, along.directions.shape[1]), along.directions)
    matrix = np.eye(settings.projection_dim, dtype=np.float32)
    matrix[:count, count:] = -projected[:, count:].cpu().numpy()
    return Basis(settings, directions, matrix)


def seeded(settings: MeasureSettings, behind: int) -> MeasureSettings:
    """The settings with the seed of the snapshot that many `behind` the last; the last one's is the run's."""
    if behind == 0:
        return settings
    digest = hashlib.sha256(f"{settings.seed}\0snapshot\0{behind}".encode()).digest()
    return replace(settings, seed=int.from_bytes(digest[:4], "little"))


def sampled(n: int, settings: MeasureSettings) -> Rows:
    """The rows gradient_pca is found on, ascending."""
    size = min(n, PCA_ROWS * settings.projection_dim)
    return np.sort(np.random.default_rng(settings.seed).choice(n, size, replace=False)).astype(np.int64)


def principal(sample: Array, dim: int) -> Array:
    """(w, dim) float32, orthonormal: the directions that hold most of the rows of `sample` (m, w).

    Not centred [choice]: the mean gradient is what a selection has to match, so it must not fall out of the
    span. NaN rows are left out. ValueError when the rest spans fewer than `dim` directions.
    """
    good = sample[np.isfinite(sample).all(axis=1)]
    _, size, directions = np.linalg.svd(good.astype(np.float64), full_matrices=False)
    rank = int((size > 1e-6 * size.max(initial=0.0)).sum())
    if rank < dim:
        raise ValueError(
            f"gradient_pca to {dim} dimensions, but the {len(good)} sampled rows with a finite gradient span "
            f"{rank}: lower projection_dim, or take basis: rademacher"
        )
    directions = directions[:dim]
    # A singular vector's sign is arbitrary: its largest entry is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return np.ascontiguousarray((directions * np.sign(largest)).T, dtype=np.float32)


def path_directions(snapshots: Sequence[Snapshot], names: Sequence[str], dim: int) -> list[dict[str, Tensor]]:
    """Orthonormal directions, by parameter, float32: principal components of the states θ_1 … θ_T, largest
    first, at most `dim`. Of the parameters in `names`; one that was not trained has not moved.

    Centred T states span T − 1 directions at most: few. A basis of these alone would let a pursuit match no
    more than T · (T − 1) numbers, and choose no more rows; so they only come first in a basis that seeded
    directions fill up [choice]. They are the same at every snapshot: finding them anew around each θ_t would
    rotate them within the same span. Where the training began is not used [choice]: a user's own run had
    another draw of LoRA's A than the model here.
    From the T × T Gram matrix, however many parameters there are. ValueError: fewer than two snapshots, or
    none that differ.
    """
    if len(snapshots) < 2:
        raise ValueError(
            f"parameter_pca needs 2 snapshots at least and there is {len(snapshots)}: set checkpoints to 2 "
            "or more, or take another basis"
        )
    moves = _centred(snapshots, [name for name in names if name in snapshots[0].weights])
    size, vectors = np.linalg.eigh(np.array([[_inner(a, b) for b in moves] for a in moves]))
    if not size.max() > 0:
        raise ValueError(
            "parameter_pca: the snapshots do not differ in the parameters that count; give checkpoints "
            "of a run that has moved, set parameters: trainable, or take another basis"
        )
    order = np.argsort(-size, kind="stable")[: min(dim, len(moves) - 1)]
    kept = [i for i in order if size[i] > 1e-10 * size.max()]
    return [_combined(moves, vectors[:, i] / np.sqrt(size[i])) for i in kept]


def _centred(snapshots: Sequence[Snapshot], names: Sequence[str]) -> list[dict[str, Tensor]]:
    states = [{name: snapshot.weights[name].float() for name in names} for snapshot in snapshots]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in names}
    return [{name: state[name] - mean[name] for name in names} for state in states]


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((value.double() * b[name].double()).sum()) for name, value in a.items())


def _combined(moves: Sequence[Mapping[str, Tensor]], weights: Array) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(move) for name, move in moves[0].items()}
    for move, weight in zip(moves, weights.tolist(), strict=True):
        for name, value in total.items():
            value.add_(move[name], alpha=weight)
    return total
