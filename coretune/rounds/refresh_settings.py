"""The settings of a refresh: whom it measures again, and how what it finds spreads to other rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from coretune.choices import refuse_other
from coretune.types import EMPTY_PROMPT_LOSS

Anchors = Literal["candidates", "priority", "all"]
Propagate = Literal["average", "none"]
Repair = Literal["local", "none"]
OnlineSignals = Literal["auto", True, False]

#: Signals that the forward pass of a training step shows, for nothing. EMPTY_PROMPT_LOSS beside them stays as
#: it was measured: no step trains on a response without its prompt.
PASSED = frozenset({"loss", "prompt_embedding", "response_embedding"})


@dataclass(frozen=True)
class AnchorRefresh:
    """Which rows a refresh measures again (the anchors), and how the others are estimated from them.

    Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
    arXiv:2604.11810, 2026. [paper] priority of staleness and of the discrepancy of importance with the
    neighbourhood; a bounded number of anchors; Eq. 21; local repair. [choice] the rest, as marked below.

    With propagate "average" all that was measured is propagated, scores and vectors alike; `*_embedding` rows
    get back their length 1. Where the refresh does nothing along a graph nothing is measured for it: there is
    one only if the method itself reads the `embedding`.

    Attributes:
        anchors: "candidates" [choice]: the rows about to be chosen (`policies/reuse.py`); "priority" [paper]:
            `paper.priority`; "all": every usable row, the same as measuring anew.
        staleness_factor: At least 1, with "candidates": a measurement is valid until the run is so many
            times as old as it was then [choice: a model changes fast at first and slowly later].
            1 = each refresh measures all that it may choose.
        anchor_share: Share of the usable rows measured at a refresh ("priority"). With "candidates" the most
            of the rows flagged as noisy that are measured again, and the share that is drawn at random while
            noise detection is off.
        propagate: "none" [choice]: rows that were not measured stay as they were; "average" [paper]: Eq. 21.
        repair: Of the graph. "none" [choice]: it stays as it was built, and with anchors "all" it is built
            anew; "local" [paper]: rows with 1 − cos(z, z when listed) > delta get a new list
            (`graph.repair`).
        beta: In [0, 1]: weight of staleness in the priority, 1 − beta that of the discrepancy.
        delta: With repair "local": how far a row may drift before it gets a new list.
        k: Neighbours of a row.
        embedding: The signal whose cosine makes the graph [choice: the prompt's, since similar prompts should
            have similar responses; docs/results.md compares].
        scores: Further signals to measure.
        priority_score: With "priority" the signal whose discrepancy counts; also the one that audit_every
            compares.
        online_signals: Rows of training steps count as measured at the next refresh, at the weights
            of their step and under its dropout. With "candidates" others are measured only as long as some
            are found noisy. "auto" [choice]: with "candidates", where all signals are `PASSED` and the
            trainer's steps show them.
    """

    anchors: Anchors = "candidates"
    staleness_factor: float = 2.0
    anchor_share: float = 0.05
    propagate: Propagate = "none"
    repair: Repair = "none"
    beta: float = 0.5
    delta: float = 0.05
    k: int = 10
    embedding: str = "prompt_embedding"
    scores: tuple[str, ...] = ("loss",)
    priority_score: str = "loss"
    online_signals: OnlineSignals = "auto"

    def __post_init__(self) -> None:
        words = {
            "anchors": Anchors,
            "propagate": Propagate,
            "repair": Repair,
            "online_signals": OnlineSignals,
        }
        for name, known in words.items():
            refuse_other(name, vars(self)[name], get_args(known))
        if not self.staleness_factor >= 1:
            raise ValueError(
                f"staleness_factor is {self.staleness_factor}: give 1 or more; 1 = at every refresh"
            )
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
        """Whether the refresh itself chooses, spreads or mends anything along a graph."""
        return self.anchors == "priority" or self.propagate != "none" or self.repair != "none"

    @property
    def starts_anew(self) -> bool:
        """Whether all rows are measured again, and nothing is carried over from what was known."""
        return self.anchors == "all" and not self.follows_graph

    @property
    def rebuilds(self) -> bool:
        """Whether a graph is built anew: all its rows were measured, and it is not mended."""
        return self.anchors == "all" and self.repair == "none"

    @property
    def needs(self) -> tuple[str, ...]:
        """Signals that the refresh itself needs."""
        if not self.follows_graph:
            return ()
        priority = (self.priority_score,) if self.anchors == "priority" else ()
        return tuple(dict.fromkeys((self.embedding, *self.scores, *priority)))

    def may_use_online(self, signals: Iterable[str]) -> bool:
        """Whether "auto" takes these signals from training steps that show them."""
        return self.anchors == "candidates" and PASSED.issuperset({*signals} - {EMPTY_PROMPT_LOSS})
