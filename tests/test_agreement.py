"""Agreement of gradients with their neighbourhood, against a loop; and that it finds what it is for."""

from __future__ import annotations

import numpy as np

from coretune.agreement import neighbour_agreement
from coretune.graph import build
from coretune.types import NeighborGraph


def _pool(seed: int, n: int = 60, d: int = 8, p: int = 12) -> tuple[NeighborGraph, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((n, d)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return build(embedding, 5, seed=0), rng.standard_normal((n, p)).astype(np.float32), rng.random(n) < 0.8


def test_equals_the_loop() -> None:
    graph, gradient, usable = _pool(0)
    gradient[3] = 0
    rows = np.array([0, 3, 7, 59])
    found = neighbour_agreement(graph, gradient, usable, rows)
    for value, row in zip(found, rows, strict=True):
        others = [j for j in graph.neighbors[row] if j >= 0 and usable[j]]
        cosines = [
            gradient[row]
            @ gradient[j]
            / max(np.linalg.norm(gradient[row]) * np.linalg.norm(gradient[j]), 1e-30)
            for j in others
        ]
        np.testing.assert_allclose(value, np.mean(cosines) if others else 0.0, atol=1e-6)


def test_length_of_a_gradient_does_not_matter() -> None:
    graph, gradient, usable = _pool(1)
    rows = np.arange(60)
    scaled = gradient * np.random.default_rng(2).uniform(0.1, 10, (60, 1)).astype(np.float32)
    np.testing.assert_allclose(
        neighbour_agreement(graph, gradient, usable, rows),
        neighbour_agreement(graph, scaled, usable, rows),
        atol=1e-5,
    )


def test_a_row_against_its_neighbourhood_comes_last() -> None:
    rng = np.random.default_rng(3)
    skill = np.repeat(np.arange(4), 15)
    embedding = np.eye(4, dtype=np.float32)[skill] + 0.05 * rng.standard_normal((60, 4)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    asked = rng.standard_normal((4, 32))[skill] + 0.2 * rng.standard_normal((60, 32))
    wrong = np.array([2, 20, 41])
    asked[wrong] = rng.standard_normal((3, 32))
    graph = build(embedding, 6, seed=0)
    found = neighbour_agreement(graph, asked.astype(np.float32), np.ones(60, bool), np.arange(60))
    assert set(np.argsort(found)[:3]) == set(wrong)
