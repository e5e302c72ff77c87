"""GRACE's selection: importance plus coverage of the pool, among the rows that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coretune.select.copies import best_of_copies
from coretune.select.dense import MakeProducts, products_here
from coretune.select.greedy import Engine, lazy_greedy
from coretune.select.held_back import CONTRADICTED, COPY, OUTLIER, RESTING
from coretune.select.importance import (
    Clues,
    clues,
    cut_off,
    importance,
    matched_clues,
    regional_loss,
    scaled,
    tells,
)
from coretune.select.objective import Objective, coverage_worth
from coretune.select.ranking import coreset, take_in_order
from coretune.select.similarity import pool_similarity
from coretune.types import MATCHED, MISMATCHED, Array, Budget, Coreset, Pool, Rows

NEARLY = 0.9  # of what it costs after another prompt, a response costs after its own: it may be wrong


@dataclass(frozen=True)
class Grace:
    """A row is worth its importance and the part of the pool that it stands for and none before it did.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] representation diversity is combined with gradient-based importance;
    [choice] so:

        F(S) = λ Σ_{i∈S} ĝ_i + (1−λ)/N Σ_v d_v max_{j∈S} sim(v, j),   ĝ = rank of the importance, in [0, 1]

    over the N usable rows v, the d_v of mean 1, by lazy greedy: F(S) >= (1 − 1/e) F(best) for rows, 0.405
    for tokens (`greedy.py`), best among the candidates below. Weights are 1.

    lambda_          in [0, 1]; 0 = coverage alone
    demand           what covering row v is worth [choice]: "loss", d_v ∝ the median loss of v's neighbours in
                     the graph, so that the coreset goes where the model still errs; a wrong response does not
                     move the median of those around it, as it would move an importance of its own. "equal"
    importance       a name of `importance.IMPORTANCES`
    importance_term  "sum": λ Σ ĝ as above, which K picks bring to λK while coverage stays below 1 − λ;
                     "mean": λ/K Σ ĝ, with which both terms range over [0, 1] (under a token budget K = tokens
                     / mean tokens of a row)
    mismatched       pairs of a prompt and another row's response whose loss every refresh measures, to know
                     what a wrong response costs, and that of the same responses after their own prompts;
                     0 = nobody is suspected
    loss_above,
    mismatch_above   [choice] rows that their neighbourhood contradicts (`importance.Clues`) may not be
                     chosen: whose loss is so many times their neighbours' median, and further than that part
                     of the way from there to what a mismatched response costs
    tells_above      [choice] nobody is contradicted, and nobody looked at for it (`looking.py`), unless a
                     mismatched response costs more than so many times what it does after its own prompt
    cutoff           share of the rest, copies not counted, that `cutoff_by` puts highest and that may not be
                     chosen either
    cutoff_by        a name of `importance.IMPORTANCES`: what an outlier, or a wrong response, is high in
    copies           [choice] of rows whose responses have at least this cosine, about the mean of all, and
                     that are neighbours in the graph, only the one of least loss may be chosen: copies look
                     trustworthy, since they are what the model learns first, and would fill a coreset of
                     trusted rows; above 1 = off
    rest             [choice] rows that one of so many last coresets trained on may not be chosen, so that the
                     coreset changes although the scores hardly do: other rows are worth more than the best
                     ones again. Nor may those that were trained on more often than is their share, which is
                     d_i times as often as the rows that may be chosen were on average, divided by the square
                     of the share of rows that nobody contradicts: the more are contradicted, the more of the
                     others are wrong too, and the better is a row that has stood. 0 = neither
    similarity       "graph": cosines along the pool's k-NN graph, 0 elsewhere; "dense": all pairs of
                     `embedding`, exact
    reasons          importance (λ ĝ_i, or its K-th part) and coverage, which add up to the gain; covered =
                     max_{j∈S} sim; suspicion as in `importance.Clues`; candidate = 1 for a row that could be
                     chosen; held_back = why another could not (`held_back.py`), 0 for a candidate
    figures          contradicted = how many rows were held back as such, left out where nobody was suspected;
                     matched_loss, mismatched_loss = the medians by which they are told (`importance.Clues`)

    Neither copies, cut-off nor rest leaves fewer rows than the budget asks for: those cut of least loss,
    and those whose training is longest ago or least of their share, stay candidates. Raises ValueError for
    a setting out of range.
    """

    lambda_: float = 0.0
    demand: str = "loss"
    importance: str = "gradient_norm"
    importance_term: str = "mean"
    mismatched: int = 32
    loss_above: float = 1.65
    mismatch_above: float = 0.33
    tells_above: float = 1.5
    cutoff: float = 0.0
    cutoff_by: str = "loss"
    copies: float = 0.999
    rest: int = 3
    similarity: str = "graph"
    embedding: str = "prompt_embedding"

    name: ClassVar[str] = "grace"
    keeps_quota: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda {self.lambda_} is no share: give 0 <= lambda <= 1")
        if self.mismatched < 0:
            raise ValueError(f"mismatched {self.mismatched} is no number of pairs: give 0 or more")
        if not self.tells_above >= 0:
            raise ValueError(f"tells_above {self.tells_above} is no factor: give 0 or more; 0 = always")
        if not 0.0 <= self.mismatch_above < 1.0:
            raise ValueError(f"mismatch_above {self.mismatch_above} is no part of a way: give 0 to below 1")
        if self.rest < 0:
            raise ValueError(f"rest {self.rest} is no number of coresets: give 0 or more")
        if self.demand not in ("loss", "equal"):
            raise ValueError(f"demand {self.demand!r} is unknown; there are loss, equal")
        if self.importance_term not in ("sum", "mean"):
            raise ValueError(f"importance_term {self.importance_term!r} is unknown; there are sum, mean")

    @property
    def needs(self) -> tuple[str, ...]:
        cutting = importance(self.cutoff_by).needs if self.cutoff else ()
        copies = ("response_embedding",) if self.copies <= 1 else ()
        weighing = importance(self.importance).needs if self.lambda_ else ()
        losses = ("loss",) if self.demand == "loss" or self.mismatched else ()
        return tuple(dict.fromkeys((*weighing, *losses, *cutting, *copies, self.embedding)))

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        return self.choose(pool, budget)

    def suspects(self, pool: Pool) -> int:
        """[choice] How many of the responses asked after would be held back, were the others their
        neighbours, and cost hardly less after their own prompts than after another's, as a wrong one does.
        """
        contradicted = matched_clues(pool).contradicted(self.loss_above, self.mismatch_above)
        near = pool.references[MATCHED] >= NEARLY * pool.references[MISMATCHED]
        return int((contradicted & near).sum())

    def choose(
        self,
        pool: Pool,
        budget: Budget,
        greedy: Engine = lazy_greedy,
        products: MakeProducts = products_here,
    ) -> Coreset:
        """`select` by another engine (`two_rounds.py`), or with products elsewhere (`torch_greedy.py`)."""
        found = clues(pool) if self.mismatched else None
        suspecting = found is not None and tells(pool, self.tells_above)
        held_back = self._held_back(pool, budget, found if suspecting else None)
        candidates = pool.usable & (held_back == 0)
        objective = self._objective(pool, budget, products)
        picks = greedy(objective, budget, pool.cost, candidates)
        reasons = {
            "importance": objective.modular,
            "coverage": coverage_worth(objective, picks, pool.usable),
            "covered": picks.best,
            "suspicion": found.suspicion if found else np.zeros(pool.n),
            "candidate": candidates.astype(np.float32),
            "held_back": held_back.astype(np.float32),
        }
        figures = _costs(found) if found else {}
        if suspecting:
            figures["contradicted"] = int((held_back == CONTRADICTED).sum())
        return coreset(picks.indices, picks.gains, reasons, figures=figures)

    def value(self, pool: Pool, chosen: Coreset) -> float:
        """F of a coreset under this pool."""
        return self._objective(pool, Budget(len(chosen.indices), "rows")).value(chosen.indices)

    def _objective(self, pool: Pool, budget: Budget, products: MakeProducts = products_here) -> Objective:
        modular: Array = np.zeros(pool.n)
        if self.lambda_:
            worth = scaled(importance(self.importance).score(pool), pool.usable)
            modular = self.lambda_ / self._terms(pool, budget) * worth
        return Objective(
            similarity=pool_similarity(pool, self.similarity, self.embedding, products),
            modular=modular,
            scale=(1.0 - self.lambda_) / pool.usable.sum(),
            demand=self._demand(pool),
        )

    def _demand(self, pool: Pool) -> Array:
        """(n,) float64 d_v, of mean 1 over the usable rows, 0 for the others."""
        demand = pool.usable.astype(np.float64)
        if self.demand == "loss":
            demand[pool.usable] *= regional_loss(pool)[pool.usable]  # an unusable row's is NaN
            demand /= demand[pool.usable].mean()
        return demand

    def _held_back(self, pool: Pool, budget: Budget, found: Clues | None) -> Array:
        """(n,) why a row may not be chosen; 0 = it may."""
        noise = self._noise(pool)
        why: Array = np.zeros(pool.n, np.int8)
        kept = pool.usable
        if found is not None:
            trusted = ~found.contradicted(self.loss_above, self.mismatch_above)
            kept = _without(kept, trusted, why, CONTRADICTED)
        if self.copies <= 1:
            kept = _without(kept, best_of_copies(pool, noise, self.copies, "response_embedding"), why, COPY)
        kept = _without(kept, cut_off(noise, kept, self.cutoff), why, OUTLIER)
        kept = kept | _enough(pool, budget, np.lexsort((noise, ~kept)))
        if self.rest and "trained_at" in pool.features:
            standing = 1 - (why == CONTRADICTED).sum() / pool.usable.sum()
            kept = _without(kept, self._rested(pool, budget, kept, noise, standing), why, RESTING)
        why[kept] = 0
        return why

    def _rested(self, pool: Pool, budget: Budget, kept: Array, noise: Array, standing: float) -> Array:
        """(n,) bool: rows of `kept` that are due again, and as many of the others as the budget needs."""
        trained_at, times = pool.feature("trained_at"), pool.feature("trained_times")
        longest_ago = np.where(kept, trained_at, np.inf)
        rested = (trained_at < 0) | (trained_at <= trained_at[pool.usable].max() - self.rest)
        rested |= _enough(pool, budget, np.lexsort((noise, longest_ago)))
        demand = self._demand(pool) + ~pool.usable  # not 0, to divide by it
        share = demand * times[kept].sum() / demand[kept].sum() / standing**2
        least_of_it = np.where(kept & rested, times / demand, np.inf)
        return rested & ((times <= share) | _enough(pool, budget, np.lexsort((noise, least_of_it))))

    def _noise(self, pool: Pool) -> Array:
        """(n,) what the rows left out are high in, and of rows alike the one that is kept is not."""
        if self.cutoff:
            return importance(self.cutoff_by).score(pool)
        return importance("loss").score(pool) if "loss" in self.needs else np.zeros(pool.n)

    def _terms(self, pool: Pool, budget: Budget) -> float:
        """What the sum of importances is divided by."""
        if self.importance_term == "sum":
            return 1.0
        if budget.unit == "rows":
            return float(budget.amount)
        return max(1.0, budget.amount / float(pool.cost[pool.usable].mean()))


def _costs(found: Clues) -> dict[str, float]:
    """By what rows are suspected."""
    if found.mismatched is None or found.matched is None:
        return {}
    return {"matched_loss": round(found.matched, 4), "mismatched_loss": round(found.mismatched, 4)}


def _without(kept: Array, allowed: Array, why: Array, code: int) -> Array:
    """(n,) bool `kept` and `allowed`; `why` (n,) gets the code where that makes the difference."""
    why[kept & ~allowed] = code
    return kept & allowed


def _enough(pool: Pool, budget: Budget, order: Rows) -> Array:
    """(n,) bool: the first usable rows of `order` that fit the budget and together fill it."""
    size = pool.cost if budget.unit == "tokens" else np.ones(pool.n, np.int64)
    order = order[pool.usable[order] & (size[order] <= budget.amount)]
    enough = np.zeros(pool.n, bool)
    if budget.quota is not None:
        enough[take_in_order(order, pool.cost, budget)] = True
        for group in np.flatnonzero(budget.quota.least):
            own = order[budget.quota.group[order] == group]
            enough[_first(own, size, int(budget.quota.least[group]))] = True
        return enough
    enough[_first(order, size, budget.amount)] = True
    return enough


def _first(order: Rows, size: Array, amount: int) -> Rows:
    """The first rows that together come to the amount."""
    return order[: int(np.searchsorted(np.cumsum(size[order]), amount)) + 1]
