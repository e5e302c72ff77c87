"""Rows in clusters, what a model might say of them, and a refresh that measures them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coretune.policies.update import update
from coretune.rounds.refresh_settings import AnchorRefresh
from coretune.types import Array, Pool, Rows

N, K = 80, 5

NO_ROWS = np.zeros(0, np.int64)


def unit(x: Array) -> Array:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def signals(seed: int, n: int = N) -> dict[str, Array]:
    """What a model might say of n rows in clusters: embedding, loss, gradient."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(0).normal(size=(8, 6))
    embedding = unit(centre[np.arange(n) % 8] + 0.5 * rng.normal(size=(n, 6)))
    return {
        "response_embedding": embedding,
        "loss": (2 + embedding[:, 0] + 0.3 * rng.normal(size=n)).astype(np.float32),
        "gradient": rng.normal(size=(n, 3)).astype(np.float32),
    }


def at(fresh: Mapping[str, Array], rows: Rows) -> dict[str, Array]:
    return {name: value[rows] for name, value in fresh.items()}


def unmeasured(n: int = N) -> Pool:
    return Pool({}, np.ones(n, np.int64), np.full(n, -1, np.int32), np.ones(n, bool))


def paper(**settings: object) -> AnchorRefresh:
    """The refresh as the paper has it, on the embedding that these tests make."""
    defaults = {
        "anchors": "priority",
        "propagate": "average",
        "repair": "local",
        "embedding": "response_embedding",
    }
    return AnchorRefresh(**{**defaults, **settings})  # type: ignore[arg-type]


def measured(refresh: AnchorRefresh, seed: int = 1, n: int = N) -> Pool:
    return update(refresh, unmeasured(n), np.arange(n), signals(seed, n), 0)
