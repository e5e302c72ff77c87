"""D2 pruning: difficulty, passed along the graph."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.importance import importance, scaled
from coretune.select.quota import BudgetTracker
from coretune.select.ranking import coreset
from coretune.select.similarity import GraphSimilarity, graph_similarity
from coretune.types import Array, Budget, Coreset, Pool, Rows


@dataclass(frozen=True)
class D2:
    """Take the highest score, lower its neighbours' scores, and so on; neighbours first add to a score.

    Maharana, Yadav, Bansal, "D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data
    Pruning", ICLR 2024, arXiv:2310.07931. With d the Euclidean distance of the embeddings, x_i the
    difficulty:

        forward   x_i <- x_i + Σ_{j∈N(i)} exp(−γ_f d_ij) x_j
        reverse   after picking s:  x_j <- x_j − exp(−γ_r d_sj) x_s  for j ∈ N(s)

    d_ij = sqrt(2 − 2 cos_ij) along the pool's graph of `embedding`, symmetrised. Difficulty is an importance,
    by rank in [0, 1] [choice], since the messages need scores >= 0. A heuristic: no guarantee is known.

    Attributes:
        gamma_forward, gamma_reverse: γ_f and γ_r: how fast a message fades with distance.
        difficulty: A name of `importance.IMPORTANCES`.
        embedding: The signal of the graph.

    Reasons: difficulty x_i · score, the score when picked, or at the end for a row not picked.
    """

    gamma_forward: float = 1.0
    gamma_reverse: float = 1.0
    difficulty: str = "loss"
    embedding: str = "prompt_embedding"

    name: ClassVar[str] = "d2"
    keeps_quota: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (*importance(self.difficulty).needs, self.embedding)

    @property
    def graph_of(self) -> str:
        return self.embedding

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        graph = graph_similarity(pool)
        distance = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * graph.similarity.astype(np.float64)))
        difficulty = scaled(importance(self.difficulty).score(pool), pool.usable)  # an unusable row sends 0
        start = np.repeat(np.arange(pool.n), np.diff(graph.indptr))
        message = np.exp(-self.gamma_forward * distance) * difficulty[graph.indices]
        score = difficulty + np.bincount(start, weights=message, minlength=pool.n)
        indices, gains = _pick(score, graph, np.exp(-self.gamma_reverse * distance), pool, budget)
        return coreset(indices, gains, {"difficulty": difficulty, "score": np.where(pool.usable, score, 0.0)})


def _pick(
    score: Array, graph: GraphSimilarity, weight: Array, pool: Pool, budget: Budget
) -> tuple[Rows, Array]:
    """Picks and their scores; lowers `score` (n,) in place. weight (e,) of each edge's reverse message."""
    if budget.unit == "rows" and budget.amount > pool.usable.sum():
        raise ValueError(
            f"a budget of {budget.amount} rows, but only {pool.usable.sum()} are usable; ask for fewer"
        )
    price = np.ones_like(pool.cost) if budget.unit == "rows" else pool.cost
    open_rows, tracker = pool.usable.copy(), BudgetTracker(budget)
    heap = [(-score[row], row) for row in np.flatnonzero(open_rows).tolist()]
    heapq.heapify(heap)
    indices: list[int] = []
    while heap and tracker.left > 0:
        negative, row = heapq.heappop(heap)
        if not open_rows[row] or -negative != score[row]:
            continue  # picked already, or its score has changed since and stands in the heap anew
        open_rows[row] = False
        if not tracker.allows(np.array([row]), price[row : row + 1])[0]:
            continue
        indices.append(row)
        tracker.spend(row, int(price[row]))
        edges = slice(graph.indptr[row], graph.indptr[row + 1])
        neighbors, lowered = graph.indices[edges], weight[edges] * score[row]
        still_open = open_rows[neighbors]
        neighbors, lowered = neighbors[still_open], lowered[still_open]
        score[neighbors] -= lowered
        for neighbor, value in zip(neighbors.tolist(), score[neighbors].tolist(), strict=True):
            heapq.heappush(heap, (-value, neighbor))
    if not indices:
        raise ValueError(f"no usable row fits a budget of {budget.amount} tokens; ask for more")
    return np.array(indices, dtype=np.int64), score[indices]
