"""How far every row has moved, estimated from the anchors' changes and from what rows are like.

    Δ(v) = m + Σ_a κ(x_v, x_a) c_a,   (K + λI) c = D − m,   κ(x, y) = exp(−‖x − y‖ / s)

Kernel ridge regression [choice]: D are the anchors' changes, m their mean, K the anchors' κ, s their median
distance. x_v is what was known of a row before: its embeddings, and the ranks of its scores. So rows far from
every anchor move too, as rows like them did: along the graph, at 5 % anchors, half of the rows have no anchor
beside them, and the others one among ten neighbours (docs/results.md has both beside the truth).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coretune.policies.paper import SHORT
from coretune.select.importance import scaled
from coretune.types import UNIT, Array, Rows

FIT_ROWS = 1024  # anchors fitted to, at most [choice: their number enters squared, and cubed]
BLOCK = 8192  # rows moved in one go
ALIKE = 3  # decimals to which two anchors' x agree that are one: copies would vouch for each other
FLOOR = 0.02  # of a score's mean, added below the logarithm: less than that says nothing as a ratio
#: λ, in units of K's mean eigenvalue; which of them, the anchors left out one by one decide.
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def drift(
    features: Mapping[str, Array], written: Mapping[str, Array], usable: Array, anchors: Rows, rows: Rows
) -> None:
    """Move `rows` of what was `written`, in place, as the anchors' changes and the features tell.

    features  name -> (n, ...)  before any of it was written; of the signals written, `*_embedding` and
                                scores (n,) say what rows are like
    written   name -> (n, ...)  float32, the anchors' rows fresh
    rows      (m,)              usable ones, no anchors

    A score nowhere below 0 moves by a factor, `*_embedding` rows get back their length 1. A signal of which
    the anchors, left out one by one, are estimated no better than by no change at all stays as it is.
    """
    places = _Places.of(features, written, usable)
    fitted = _distinct(places, anchors)
    if len(fitted) < 2 or len(rows) == 0:
        return
    ridge = Ridge.of(places.at(fitted))
    bends = {name: _Bend.of(features[name], values, usable) for name, values in written.items()}
    found = {}
    for name, values in written.items():
        bend, before = bends[name], features[name]
        found[name] = ridge.solve(bend.straight(values[fitted]) - bend.straight(before[fitted]))
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        likeness = ridge.likeness(places.at(block))
        for name, values in written.items():
            mean, coefficients = found[name]
            moved = bends[name].straight(values[block]) + mean + likeness @ coefficients
            moved = bends[name].back(moved).reshape(values[block].shape)
            values[block] = _unit(moved, values[block]) if name.endswith(UNIT) else moved


@dataclass(frozen=True)
class Ridge:
    """Kernel ridge regression on the places x (a, d) of `a` anchors, for one set of changes after another."""

    x: Array
    scale: float
    eigenvalues: Array
    eigenvectors: Array

    @classmethod
    def of(cls, x: Array) -> Ridge:
        wide = x.astype(np.float64)  # near rows' distances cancel in float32, and K is to be inverted
        distance = _distances(wide, wide)
        scale = float(np.median(distance[~np.eye(len(x), dtype=bool)]))
        values, vectors = np.linalg.eigh(np.exp(-distance / scale))
        return cls(x, scale, np.maximum(values, 0), vectors)

    def likeness(self, x: Array) -> Array:
        """(m, a) float32 κ of other places and the anchors'."""
        return np.exp(-_distances(x, self.x) / np.float32(self.scale))

    def solve(self, change: Array) -> tuple[Array, Array]:
        """(c,) m and (a, c) coefficients for changes (a, c): those that estimate a left-out anchor best.

        Of ridges of every strength, the mean alone, and no change. The error of the anchor that is left out
        is c_a / [(K + λI)⁻¹]_aa; of m it is not left out.
        """
        a, change = len(change), change.astype(np.float64)
        mean = change.mean(axis=0)
        apart = change - mean
        flat = np.zeros_like(change)
        choices = [(float((change**2).sum()), 0 * mean, flat)]
        choices.append((float((apart**2).sum()) * (a / (a - 1)) ** 2, mean, flat))
        turned = self.eigenvectors.T @ apart
        for strength in STRENGTHS:
            inverse = 1 / (self.eigenvalues + strength * self.eigenvalues.mean())
            coefficients = self.eigenvectors @ (inverse[:, None] * turned)
            own = self.eigenvectors**2 @ inverse
            choices.append((float(((coefficients / own[:, None]) ** 2).sum()), mean, coefficients))
        _, mean, coefficients = min(choices, key=lambda choice: choice[0])
        return mean.astype(np.float32), coefficients.astype(np.float32)


@dataclass(frozen=True)
class _Places:
    """x of every row, as parts (n, d) that are put side by side only for the rows asked for."""

    parts: tuple[Array, ...]

    @classmethod
    def of(cls, features: Mapping[str, Array], written: Mapping[str, Array], usable: Array) -> _Places:
        names = sorted(written)
        embeddings = [features[name] for name in names if name.endswith(UNIT)]
        ranks = [scaled(features[name], usable)[:, None] for name in names if features[name].ndim == 1]
        return cls((*embeddings, *ranks))

    def at(self, rows: Rows) -> Array:
        return np.concatenate([part[rows] for part in self.parts], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class _Bend:
    """The scale on which a signal moves: log(value + floor), or with floor 0 the value itself."""

    floor: float

    @classmethod
    def of(cls, before: Array, after: Array, usable: Array) -> _Bend:
        score = before.ndim == 1 and bool((before[usable] >= 0).all() and (after[usable] >= 0).all())
        return cls(FLOOR * float(before[usable].mean()) if score else 0.0)

    def straight(self, values: Array) -> Array:
        flat = values.reshape(len(values), -1)
        return np.log(flat + np.float32(self.floor)) if self.floor else flat

    def back(self, values: Array) -> Array:
        return np.maximum(np.exp(values) - np.float32(self.floor), 0) if self.floor else values


def _distinct(places: _Places, anchors: Rows) -> Rows:
    """The anchors to fit to: of copies one, and of too many some, evenly."""
    _, first = np.unique(np.round(places.at(anchors), ALIKE), axis=0, return_index=True)
    kept = anchors[np.sort(first)]
    if len(kept) <= FIT_ROWS:
        return kept
    return kept[np.linspace(0, len(kept) - 1, FIT_ROWS).astype(np.int64)]


def _distances(one: Array, other: Array) -> Array:
    """(m, a) Euclidean, of the dtype given."""
    square = np.einsum("ij,ij->i", one, one)[:, None] + np.einsum("ij,ij->i", other, other)
    return np.sqrt(np.maximum(square - 2 * (one @ other.T), 0))


def _unit(moved: Array, before: Array) -> Array:
    """Rows of length 1; one that came to nothing stays where it was."""
    length = np.sqrt(np.einsum("ij,ij->i", moved, moved))[:, None]
    return np.where(length > SHORT, moved / np.maximum(length, SHORT), before)
