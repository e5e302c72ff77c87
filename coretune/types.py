"""The words everything else is written in: rows, pool, graph, coreset, budget.

Numbers only. Nothing here, and nothing that only needs these types, imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = NDArray[np.int64]  # (m,) positions in the pool, distinct


class TrainersSeed(int):
    """A seed that nobody gave: the trainer puts its own in this place. Without a trainer it is 0."""


TRAINERS_SEED = TrainersSeed(0)

#: The label of a token that the loss does not count, as in transformers.
IGNORED = -100

#: In `Pool.references`, (m,) float32: losses of responses after other rows' prompts, after their own, after
#: an empty one; and the tokens of those responses.
MISMATCHED, MATCHED, UNPROMPTED = "mismatched_loss", "matched_loss", "unprompted_loss"
PAIR_TOKENS = "pair_tokens"

#: In `Pool.features`, (n,): the lowest row with the same tokens and prompt; tokens of the response; number of
#: the coreset that last trained on a row (0 = warm-up, -1 = none); how often it was trained on.
EQUAL_TO, FOLDED_TO, RESPONSE_TOKENS = "equal_to", "folded_to", "response_tokens"
TRAINED_AT, TRAINED_TIMES = "trained_at", "trained_times"

#: How the names of features end whose rows have length 1.
UNIT = "_embedding"

#: A signal: the loss of a row's response after an empty prompt, what all prompts of the pool end with.
EMPTY_PROMPT_LOSS = "empty_prompt_loss"

#: In `Pool.features` beside it, (n,): how like a wrong response a row's is (`filters/noise.py`), against the
#: pairs that were measured with it.
NOISE_SCORE = "noise_score"

#: A signal, (n, m): the cosine of a row's `weighted_embedding` with that of each of the m target examples.
TARGET_SIMILARITY = "target_similarity"

#: A signal, (n, S): a row's loss after a warm-up on the examples of each of the S targets alone.
TARGET_LOSS = "target_loss"

#: A signal, (n, …): a row's gradients at the checkpoints of a run, one after the other.
TRAJECTORY = "trajectory"

#: In `Pool.references`: the target that each of the m examples is of, (m,) int64; each target's part of the
#: budget, (S,), which add up to 1.
TARGET_OF, SHARE = "target_of", "share"

#: In `Coreset.reasons`, where there is a target: the example of it that a row serves, by its number; of
#: several targets the one that a row was chosen for, -1 = not chosen.
SERVES, TARGET_NUMBER = "serves", "for_target"

#: In `Pool.features`, where there is a target: (n,) 1 for a row that equals one of its examples, else 0.
TARGET_ROW = "target_row"

#: The only access to the model: rows -> {signal name: (m, ...) array, row r describes rows[r]}.
#: A row whose signal cannot be computed comes back as NaN, never as a made-up number.
Measure = Callable[[Rows], Mapping[str, Array]]

#: What a long loop calls with how many of how many steps are done, at most some times a second.
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Reserve:
    """What a graph keeps so that it is mended without searching the pool again.

    neighbors   (n, s) int32    the nearest behind the k listed, nearest first; -1 where there is none
    similarity  (n, s) float32  cosine, 0 beside a -1
    reach       (n,) float32    no row outside both lists is nearer than that, as far as the search saw
    centroids   (c, d) float32  of the cells that the pool was cut into; c = 1: one cell, searched exactly
    home        (n,) int32      the cell of each row, -1 for one without direction
    probes      () int32        how many cells a row asks
    """

    neighbors: Array
    similarity: Array
    reach: Array
    centroids: Array
    home: Array
    probes: Array


@dataclass(frozen=True)
class NeighborGraph:
    """Directed k-NN lists over the pool; row i is never its own neighbour.

    neighbors   (n, k) int32    nearest first; -1 where fewer than k exist
    similarity  (n, k) float32  cosine, taken when the list was made; 0 beside a -1
    built_from  (n, d)          the unit embedding each row had when its list was made: float32, float16
                                once the graph was mended
    reserve     what mending needs; a graph without is made anew instead
    """

    neighbors: Array
    similarity: Array
    built_from: Array
    reserve: Reserve | None = None

    @property
    def n(self) -> int:
        """Rows of the pool."""
        return int(self.neighbors.shape[0])

    @property
    def k(self) -> int:
        """Neighbours of a row."""
        return int(self.neighbors.shape[1])


@dataclass(frozen=True)
class Pool:
    """What is known of every example, without text, tokens or model.

    features     name -> (n, ...)   row i describes example i; the names are those of the signals
    cost         (n,) int64         tokens an example adds to training
    measured_at  (n,) int32         round of the last exact measurement, -1 = never
    usable       (n,) bool          False = may never be chosen (its signals were not finite)
    graph        NeighborGraph | None
    references   name -> (targets, ...)  of a signal of the target's examples, what rows are compared with;
                                         "share" (targets,) is each target's part of the budget
    """

    features: Mapping[str, Array]
    cost: Array
    measured_at: Array
    usable: Array
    graph: NeighborGraph | None = None
    references: Mapping[str, Array] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Rows of the pool."""
        return int(self.cost.shape[0])

    @property
    def unmeasured(self) -> bool:
        """Whether none of its rows was ever measured."""
        return bool((self.measured_at < 0).all())

    def feature(self, name: str) -> Array:
        """The feature of that name; KeyError names what the pool does hold."""
        if name not in self.features:
            raise KeyError(f"the pool has no feature {name!r}; it has {sorted(self.features)}")
        return self.features[name]


@dataclass(frozen=True)
class Coreset:
    """The rows to train on.

    indices  (K,) int64    distinct pool rows, in the order chosen
    weights  (K,) float64  >= 0, mean 1
    gains    (K,) float64  what each pick was worth when it was picked
    reasons  name -> (n,)  the components of that worth for EVERY pool row, for the audit
    figures  name -> number, text, or list of numbers (what JSON can hold) about the selection as a whole,
             for the ledger and the report: a certificate, a curve that was searched, a residual
    filters  names of the filters that were applied, in their order
    filtered (n,) int8  which of them took a row out, counted from 1; 0 = none did. None without filters
    """

    indices: Rows
    weights: Array
    gains: Array
    reasons: Mapping[str, Array] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    filters: tuple[str, ...] = ()
    filtered: Array | None = None

    def filtered_by(self, name: str) -> Array | None:
        """(n,) bool: the rows that the filter of that name took out; None where it was not applied."""
        if self.filtered is None or name not in self.filters:
            return None
        return np.asarray(self.filtered == self.filters.index(name) + 1)


@dataclass(frozen=True, eq=False)
class Quota:
    """At least and at most so much of a budget for each group of rows, in the budget's unit.

    group  (n,) int64  position of each row's group
    least  (G,) int64
    most   (G,) int64
    names  (G,) what users call them
    """

    group: Array
    least: Array
    most: Array
    names: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """How much may be chosen: rows or tokens, already resolved against a pool (see `budget.py`)."""

    amount: int
    unit: str = "rows"  # "rows" | "tokens"
    quota: Quota | None = None


@runtime_checkable
class Selector(Protocol):
    """Pool -> Coreset. A frozen dataclass whose fields are its settings."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the signals it reads from `pool.features`."""
        ...

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        """The coreset of this pool.

        Args:
            pool: Its rows with the signals of `needs`; only rows with `usable` may be chosen.
            budget: Rows exactly, or tokens at most.
            rng: The only source of randomness.

        Returns:
            Rows in the order chosen, with weights, gains and the reasons of every row.
        """
        ...


@dataclass(frozen=True)
class Verdict:
    """What a filter says of a pool.

    keep     (n,) bool     False = may not be chosen; anything for rows that are not usable
    score    (n,) float32  what it decides by, high where it takes out; NaN where it knows nothing
    figures  name -> number or text (what JSON can hold), for the ledger and the log
    """

    keep: Array
    score: Array
    figures: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Filter(Protocol):
    """Pool -> which rows may be chosen, whatever the method. A frozen dataclass; its fields are its settings.

    name  in the configuration, of the column with its score, and why a row was taken out
    says  the same for people: "an exact duplicate of another row"
    """

    name: ClassVar[str]
    says: ClassVar[str]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the signals it reads from `pool.features`."""
        ...

    def judge(self, pool: Pool, budget: Budget) -> Verdict:
        """`pool.usable` are the rows that the filters before it left; `budget` is to be filled from them."""
        ...


@runtime_checkable
class ReadsGraph(Protocol):
    """A filter that may compare a row with its neighbours in the pool's graph."""

    @property
    def reads_graph(self) -> bool:
        """Whether it does; then `refresh.embedding` is measured, and the graph is made of it."""
        ...


@runtime_checkable
class RefreshPolicy(Protocol):
    """Whom one refresh measures, and how the selection after it sees the pool. Made anew for each refresh.

    plan ─► measure ─► update ─► more ─► measure ─► update ─► more … none ─► as_selected ─► select
    """

    @property
    def compares_anew(self) -> bool:
        """Whether `Pool.references` are measured first, under the weights of now."""
        ...

    def defers(self, pool: Pool) -> bool:
        """Whether nothing is to be measured yet: the coreset is drawn at random this time."""
        ...

    def plan(self, pool: Pool) -> Rows:
        """The rows to measure first; `pool` as it was before this refresh."""
        ...

    def more(self, pool: Pool, turn: int) -> Rows:
        """The rows to measure next, after the update of that turn, from 0 on; none ends the refresh."""
        ...

    def as_selected(self, pool: Pool) -> Pool:
        """The pool as the selection is to see it."""
        ...


@runtime_checkable
class Valued(Protocol):
    """A selector that maximises a set function can say what a coreset is worth under a pool."""

    def value(self, pool: Pool, coreset: Coreset) -> float:
        """The objective of this coreset, under the signals of this pool."""
        ...


@runtime_checkable
class AlongGraph(Protocol):
    """A selector that compares rows by an embedding, of which the pool's graph is then made."""

    @property
    def graph_of(self) -> str:
        """The name of the embedding."""
        ...


@runtime_checkable
class UsesCheckpoints(Protocol):
    """A selector that measures at checkpoints of a warm-up run made first, or of the user's own run.

    The training that follows starts from the base model, as if there had been no warm-up run.

    checkpoints_from  "warmup": a run on `coreset.refresh.warmup` of the pool; else a folder of checkpoints
    checkpoints       how many of them are measured at, evenly spaced, the last one included
    defaults          a `coreset` section of what its settings are where nothing is given
    """

    @property
    def checkpoints_from(self) -> str:
        """The warm-up run ("warmup"), or a folder of checkpoints."""
        ...

    @property
    def checkpoints(self) -> int:
        """How many checkpoints are measured at."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """A `coreset` section of settings where nothing is given."""
        ...


@runtime_checkable
class KeepsQuota(Protocol):
    """A selector that never breaks the quota of a budget; others are refused where one is asked for."""

    keeps_quota: ClassVar[bool]
