"""The settings of a refresh: whom it measures again, and how what it finds spreads to other rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from coretune.choices import refuse_other
from coretune.types import EMPTY_PROMPT_LOSS

Anchors = Literal["candidates", "priority", "random", "all", "trained"]
Propagate = Literal["average", "delta", "fit", "none"]
Repair = Literal["local", "rebuild", "none"]
Harvest = Literal["auto", True, False]

#: Signals that the forward pass of a training step shows, for nothing. EMPTY_PROMPT_LOSS beside them stays as
#: it was measured: no step trains on a response without its prompt.
PASSED = frozenset({"loss", "prompt_embedding", "response_embedding"})


@dataclass(frozen=True)
class AnchorRefresh:
    """Measure a few anchors exactly, spread what they tell along the k-NN graph, mend it where rows drifted.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] priority of staleness and of the discrepancy of importance with the
    neighbourhood; a bounded number of anchors; Eq. 21; local repair. [choice] the rest, as marked below.

    anchors         "candidates" [choice]: the rows about to be chosen (`policies/reuse.py`);
                    "priority" [paper]: `paper.priority`; "random"; "all": every
                    usable row, so with repair "rebuild" the same as measuring anew; "trained": the rows the
                    last coreset trained on (feature `trained_at` (n,) int32: its number, -1 = never)
    look_again      at least 1, with "candidates": a look at a row is good until the run is so many times as
                    old as it was then [choice: a model changes fast at first and slowly later]; 1 = each
                    refresh looks at all it may choose
    anchor_share    share of the usable rows measured at a refresh ("priority" and "random"); with
                    "candidates" the most of those flagged as noisy that are measured again, and those
                    drawn at random while noise cannot be told
    propagate       "average": Eq. 21; "delta": the anchors' changes (`propagation.py`); "fit": what they tell
                    of every row by what rows are like (`drift.py`); "none"
    repair          "local": `graph.repair` of rows with 1 − cos(z, z when listed) > delta; "rebuild"; "none"
    beta            in [0, 1]: weight of staleness in the priority, 1 − beta that of the discrepancy
    k               neighbours of a row
    embedding       the signal whose cosine makes the graph [choice: prompts, since rows that ask alike should
                    be answered alike; docs/results.md compares it with the responses]
    scores          further signals to measure
    priority_score  with "priority" the signal whose discrepancy counts; also what refresh_every "adaptive"
                    tests and audit_every compares
    count_alike     [choice] with "priority": times the number of rows that a measurement tells of
    spread_anchors  [choice] with "priority": the neighbours of an anchor taken are damped; else the rows of
                    highest priority are taken
    harvest         take the signals of rows that training passes through from the training step itself: at
                    the next refresh they count as measured, at the weights their step had and under its
                    dropout, and only the other anchors are looked at. With anchors "trained" that is all;
                    with "candidates" those are measured only as long as some are found noisy. "auto"
                    [choice]: with these two anchors, where all signals are `PASSED` and the trainer's steps
                    show them

    All that was measured is propagated, scores and vectors alike; `*_embedding` rows get back their length 1.
    Where nothing is done along a graph (anchors "all", propagate "none", repair "none") nothing is measured
    for it: there is a graph only if the selector itself asks for the `embedding`.
    """

    anchors: Anchors = "candidates"
    look_again: float = 2.0
    anchor_share: float = 0.05
    propagate: Propagate = "delta"
    repair: Repair = "local"
    beta: float = 0.5
    delta: float = 0.05
    k: int = 10
    embedding: str = "prompt_embedding"
    scores: tuple[str, ...] = ("loss",)
    priority_score: str = "loss"
    count_alike: bool = True
    spread_anchors: bool = True
    harvest: Harvest = "auto"

    def __post_init__(self) -> None:
        words = {"anchors": Anchors, "propagate": Propagate, "repair": Repair, "harvest": Harvest}
        for name, known in words.items():
            refuse_other(name, vars(self)[name], get_args(known))
        if not self.look_again >= 1:
            raise ValueError(f"look_again is {self.look_again}: give 1 or more; 1 = at every refresh")
        if not 0 < self.anchor_share <= 1:
            raise ValueError(f"anchor_share is {self.anchor_share}: give a share above 0, at most 1")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}: give a number from 0 to 1")
        if not 0 <= self.delta <= 2:
            raise ValueError(f"delta is {self.delta}: give a cosine distance from 0 to 2")
        if self.k < 1:
            raise ValueError(f"k is {self.k}: give at least 1 neighbour")

    @property
    def follows_graph(self) -> bool:
        """Whether anything is chosen, spread or mended along a graph."""
        return (self.anchors, self.propagate, self.repair) != ("all", "none", "none")

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.follows_graph:
            return ()
        priority = (self.priority_score,) if self.anchors == "priority" else ()
        return tuple(dict.fromkeys((self.embedding, *self.scores, *priority)))

    def may_harvest(self, signals: Iterable[str]) -> bool:
        """Whether "auto" takes these signals from training steps that show them."""
        return self.anchors in ("candidates", "trained") and PASSED.issuperset(
            {*signals} - {EMPTY_PROMPT_LOSS}
        )
