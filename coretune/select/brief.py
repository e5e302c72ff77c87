"""BRIEF: few weighted rows that keep both what a response teaches and how it follows its prompt."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from coretune.select.certificate import Certificate, certify
from coretune.select.engines import KINDS, WORTH_SAYING, Plan, bytes_of, plan, seconds_of
from coretune.select.greedy import check_budget
from coretune.select.line_search import SEARCHES, minimise
from coretune.select.lower_level import Level, Picked, Task, build
from coretune.select.partitions import MakeParts, parted_level, parts_here
from coretune.select.quota import refuse_quota, within
from coretune.select.ranking import coreset, usable_feature
from coretune.select.spaces import Space, nearest_picks
from coretune.types import Array, Budget, Coreset, Pool

log = logging.getLogger("coretune")

#: Settings of the `coreset` section where nothing is given: what the paper does.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "weighted": True,
        "refresh_every": "never",
        "refresh": {"warmup": 0.05, "anchors": "all", "propagate": "none", "repair": "none"},
        "signals": {"projection_dim": 8192, "last_blocks": None, "preconditioner": "adam"},
    }
)
#: The distances of each space alone, in the order (KN, IF).
EACH = np.eye(2)


@dataclass(frozen=True)
class Brief:
    """Bi-level facility location over knowledge and instruction-following gradients.

    Shen, Zhang, Chai et al., "BRIEF: Bi-level Coreset Selection for Efficient Instruction Tuning in LLMs",
    PVLDB 19(6), 2026. With g^KN = Γ(∇L_KN), g^IF = Γ(∇L_SFT) − Γ(∇L_KN), the signals `kn_gradient` and
    `if_gradient`, and d^• unsquared L2 distances between them:

        lower level, α fixed (Eq. 28)   d_ij = d^KN_ij/α + d^IF_ij/(1−α)
                                        C(α) = argmin_{|C|<=K} Σ_i min_{j∈C} d_ij, by greedy on
                                        F(C) = Σ_i [c − min(c, min_{j∈C} d_ij)],  c >= max d
                                        w_j  = #{i : j nearest to i in C},  Σ_j w_j = N
        upper level (Eqs. 19–20)        min over α of  E(α) = (B_KN + B_IF)/N,  B_• = Σ_i min_{j∈C(α)} d^•_ij

    [choice] d is used times α(1−α), as (1−α) d^KN + α d^IF: greedy and nearest picks are the same, and the
    endpoints are d^KN alone (α = 0) and d^IF alone (α = 1) without a division. [choice] E is not unimodal in
    general, so the best α *evaluated* wins, the first among equals. Guarantee: F(C) >= (1 − 1/e) F(best) for
    rows, 0.405 for tokens (`greedy.py`): of F, not of the error, on which the certificate is the word.

    Attributes:
        alpha: The split, not searched; 0 and 1 are the controls with one space alone.
        objective: "brief", or "sft": the control CRAIG on ‖g^SFT_i − g^SFT_j‖, g^SFT = g^KN + g^IF, with no
            α.
        search: "golden" [paper] or "ternary".
        grid: So many evenly spaced α first, and then the search around the best; 0 = none [choice].
        tolerance, evaluations: Where the search stops; evaluations count the grid.
        lower: "auto", "dense", "graph", "partitions" (`lower_level.py`); auto goes by rows and memory.
        greedy: "lazy", exact, or "stochastic".
        neighbors: k of the graph, in each space.
        checkpoints_from: "warmup", or a folder of checkpoints.
        checkpoints: 1, the last.

    Reasons: represents = w_j, 0 for a row not chosen; distance_kn, distance_if to the pick that
        represents the row; represented_by, that pick's row.

    Figures: alpha, E, the curve [[α, E], …], the lower level, its guarantee and recall, the certificate
        (`certificate.py`), represented = N.
    """

    alpha: float | None = None
    objective: str = "brief"
    search: str = "golden"
    grid: int = 0
    tolerance: float = 0.005
    evaluations: int = 15
    lower: str = "auto"
    greedy: str = "lazy"
    neighbors: int = 128
    checkpoints_from: str = "warmup"
    checkpoints: int = 1

    name: ClassVar[str] = "brief"
    keeps_quota: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _one_of("objective", self.objective, ("brief", "sft"))
        _one_of("search", self.search, SEARCHES)
        _one_of("lower", self.lower, ("auto", *KINDS))
        _one_of("greedy", self.greedy, ("lazy", "stochastic"))
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(
                f"alpha is {self.alpha}: give a number from 0 to 1, or leave it out to search it"
            )
        if self.grid and not 3 <= self.grid <= self.evaluations:
            raise ValueError(f"grid is {self.grid}: 0, or from 3 to evaluations = {self.evaluations}")
        if self.evaluations < 2:
            raise ValueError(f"evaluations is {self.evaluations}: give at least 2")
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"tolerance is {self.tolerance}: give a number between 0 and 1")
        if self.neighbors < 1:
            raise ValueError(f"neighbors is {self.neighbors}: give at least 1")
        if self.checkpoints != 1:
            raise ValueError(f"checkpoints is {self.checkpoints}: BRIEF measures at one, the last")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("kn_gradient", "if_gradient")

    @property
    def unused_settings(self) -> tuple[str, ...]:
        """Settings that these values leave without effect."""
        searched = ("search", "grid", "tolerance", "evaluations")
        if self.objective == "sft":
            unused: tuple[str, ...] = ("alpha", *searched)
        else:
            unused = searched if self.alpha is not None else ()
        return (*unused, "neighbors") if self.lower == "dense" else unused

    @property
    def defaults(self) -> Mapping[str, Any]:
        return DEFAULTS

    def select(self, pool: Pool, budget: Budget, rng: np.random.Generator) -> Coreset:
        return self.choose(pool, budget, rng)

    def choose(
        self,
        pool: Pool,
        budget: Budget,
        rng: np.random.Generator,
        make_parts: MakeParts = parts_here,
        memory_limit: str = "4GiB",
        deadline: str | None = None,
    ) -> Coreset:
        """`select` within limits, and with the parts of "partitions" elsewhere (a cluster): the same answer.

        memory_limit  what may be held above the features
        deadline      of all greedy runs together, at the nominal speed of `engines.py`: decides between all
                      pairs and a graph; None: some minutes
        """
        rows = np.flatnonzero(pool.usable)
        kn, if_ = (Space((usable_feature(pool, name),), rows) for name in self.needs)
        cost, budget = pool.cost[rows], within(budget, rows)
        check_budget(budget, cost)
        seed = int(rng.integers(2**62))
        planned = self._planned(kn, if_, bytes_of(memory_limit), seconds_of(deadline))
        level = self._level(kn, if_, seed, budget, planned, make_parts)
        task = Task(budget, cost, np.ones(len(rows)), self.greedy, seed)
        alpha, curve, picked = self._upper_level(kn, if_, level, task)
        least = self._least(kn, if_, picked)
        mix = _mix(alpha) if alpha is not None else np.ones(1)
        represented_by = picked.nearest(mix[None])[0][0]
        certificate = certify(kn, if_, picked.rows, represented_by, least)
        figures = {
            **({"alpha": alpha, "curve": [list(point) for point in curve]} if alpha is not None else {}),
            "E": float(least.sum(dtype=np.float64) / len(rows)),
            "lower_level": planned.kind,
            "guarantee": planned.guarantee,
            "recall": level.recall,
            "represented": len(rows),
            **certificate.figures(alpha),
        }
        return _coreset(pool, rows, picked, represented_by, certificate, figures)

    def _planned(self, kn: Space, if_: Space, memory: int, deadline: float | None) -> Plan:
        """The kind of the lower level, announced before it is built."""
        runs = self.evaluations if self.alpha is None and self.objective == "brief" else 1
        planned = plan(self._spaces(kn, if_), self.lower, memory, self.neighbors, runs, deadline)
        said = logging.WARNING if planned.work > WORTH_SAYING else logging.INFO
        if log.isEnabledFor(said):
            log.log(said, "BRIEF, lower level: %s", planned.line(kn.n))
        return planned

    def _level(
        self, kn: Space, if_: Space, seed: int, budget: Budget, planned: Plan, make_parts: MakeParts
    ) -> Level:
        spaces = self._spaces(kn, if_)
        if planned.kind == "partitions":
            refuse_quota(budget, "BRIEF in partitions")
            return parted_level(spaces, self.neighbors, seed, make_parts=make_parts)
        return build(spaces, planned, self.neighbors, np.random.default_rng(seed))

    def _spaces(self, kn: Space, if_: Space) -> tuple[Space, ...]:
        return (kn, if_) if self.objective == "brief" else (Space(kn.parts + if_.parts, kn.rows),)

    def _upper_level(
        self, kn: Space, if_: Space, level: Level, task: Task
    ) -> tuple[float | None, list[tuple[float, float]], Picked]:
        """The best α evaluated, E(α) of all that were, and C(α); no α where the objective has none."""
        if self.objective == "sft":
            return None, [], level.pick(np.ones(1), task)
        if self.alpha is not None:
            picked = level.pick(_mix(self.alpha), task)
            return self.alpha, [], picked
        best: tuple[float, float, Picked] | None = None

        def error(alpha: float) -> float:
            nonlocal best
            picked = level.pick(_mix(alpha), task)
            value = float(self._least(kn, if_, picked).sum(dtype=np.float64) / kn.n)
            if best is None or value < best[0]:
                best = (value, alpha, picked)
            return value

        curve = minimise(error, self.search, self.grid, self.tolerance, self.evaluations)
        assert best is not None
        return best[1], curve, best[2]

    def _least(self, kn: Space, if_: Space, picked: Picked) -> Array:
        """(2, n) distance of each row to its nearest pick in KN and in IF."""
        if self.objective == "sft":  # the lower level knows g^SFT alone
            return nearest_picks((kn, if_), EACH, picked.rows)[1]
        return picked.nearest(EACH)[1]


def _mix(alpha: float) -> Array:
    """(1−α, α): Eq. 28 times α(1−α)."""
    return np.array([1.0 - alpha, alpha])


def _coreset(
    pool: Pool,
    rows: Array,
    picked: Picked,
    represented_by: Array,
    certificate: Certificate,
    figures: dict[str, Any],
) -> Coreset:
    """The answer in rows of the pool; what is not usable has reasons of 0, and no representative, -1."""
    chosen = rows[picked.rows]
    clusters = np.bincount(represented_by, minlength=len(chosen))
    represents, far_kn, far_if = np.zeros(pool.n), np.zeros(pool.n), np.zeros(pool.n)
    representative = np.full(pool.n, -1.0)
    represents[chosen] = clusters
    far_kn[rows], far_if[rows] = certificate.distance_kn, certificate.distance_if
    representative[rows] = chosen[represented_by]
    reasons = {
        "represents": represents,
        "distance_kn": far_kn,
        "distance_if": far_if,
        "represented_by": representative,
    }
    return coreset(chosen, picked.gains, reasons, weights=clusters, figures=figures)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; there are {', '.join(known)}")
