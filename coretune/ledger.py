"""What a run cost: seconds, rows, tokens and FLOPs by phase, and what every round did.

    ledger = Ledger()
    with ledger.phase("training"):
        ...
        with ledger.phase("measurement", rows=512, tokens=90_000, flops=3e12):
            ...                                  # these seconds are measurement's, no longer training's
    ledger.write("run/ledger.json")

Every second between entering and leaving the outermost phase is counted once, for the innermost phase open.

FLOPs are the model's: forward and backward passes, a multiply and an add counted as two. Work outside the
model (graph, greedy) has seconds and no FLOPs [choice: it is comparisons and memory traffic, and runs are
compared by what the model computes]. A phase through which tokens passed at a cost that nobody stated has
FLOPs `None`, and so has the total: a partial sum would be read as a whole one.
The formulas are at the end of the file.

One ledger a process, used from one thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from coretune.files import write_text
from coretune.types import EMPTY_PROMPT_LOSS, TARGET_SIMILARITY, Array, Rows

PHASES = ("warm-up", "measurement", "graph", "selection", "training", "evaluation", "other")
SELECTING = ("measurement", "graph", "selection")  # of choosing rows
TABLE_HEADER = ("phase", "seconds", "share", "rows", "tokens", "FLOPs")


@dataclass
class Cost:
    """Rows measured or trained on and tokens through the model, repeats counted; None = unknown."""

    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    flops: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        known = self.flops is not None and other.flops is not None
        return Cost(
            self.seconds + other.seconds,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.flops + other.flops if known else None,  # type: ignore[operator]
        )


@dataclass
class Visit:
    """One stay in a phase. Counts that are known only at its end are set on it: `visit.tokens += 512`."""

    name: str
    rows: int = 0
    tokens: int = 0
    flops: float | None = None
    entered: float = 0.0  # the clock when the phase was entered
    elsewhere: float = 0.0  # seconds since then that belong to phases inside this one

    def cost(self, now: float) -> Cost:
        """What this phase cost, without phases inside it."""
        flops = 0.0 if self.flops is None and self.tokens == 0 else self.flops
        own = now - self.entered - self.elsewhere
        return Cost(own, int(self.rows), int(self.tokens), None if flops is None else float(flops))


@dataclass(frozen=True)
class Round:
    """One refresh: how much was measured and chosen, how long it took, how much of the coreset stayed."""

    round: int
    rows_measured: int
    rows_chosen: int
    seconds: float  # of the refresh: measurement, graph and selection together
    overlap: float | None  # share of this coreset that was in the last one; None for the first
    approximation: Mapping[str, float | None] = field(default_factory=dict)  # see `approximation.py`
    selection: Mapping[str, Any] = field(default_factory=dict)  # what the method says of it: Coreset.figures


@dataclass
class Ledger:
    """Costs by phase and the history of rounds.

    clock         returns seconds and never goes back
    counts_flops  False where no formula holds for the model: what passes it has FLOPs None, whatever is said
    """

    clock: Callable[[], float] = time.perf_counter
    costs: dict[str, Cost] = field(default_factory=lambda: {name: Cost() for name in PHASES})
    rounds: list[Round] = field(default_factory=list)
    predicted: Mapping[str, Any] | None = None  # phases and total, as `to_dict` has them, before the run
    disk: Mapping[str, int] = field(default_factory=dict)  # what -> bytes, when the run was over
    counts_flops: bool = True
    _open: list[Visit] = field(default_factory=list, init=False, repr=False)

    @contextmanager
    def phase(self, name: str, rows: int = 0, tokens: int = 0, flops: float | None = None) -> Iterator[Visit]:
        """Count the time of the block for `name`, also when it raises."""
        _check_phase(name)
        visit = Visit(name, rows, tokens, flops, entered=self.clock())
        self._open.append(visit)
        try:
            yield visit
        finally:
            now = self.clock()
            self._open.pop()
            self.costs[name] += self._known(visit.cost(now))
            self._take_from_open(now - visit.entered)

    def add(
        self, name: str, seconds: float = 0.0, rows: int = 0, tokens: int = 0, flops: float | None = None
    ) -> None:
        """Count what somebody else timed. Inside an open phase the seconds are moved out of that phase."""
        _check_phase(name)
        self.costs[name] += self._known(Visit(name, rows, tokens, flops).cost(seconds))
        self._take_from_open(seconds)

    def add_round(self, entry: Round) -> None:
        """Append a round; ValueError when it does not come after the last one."""
        if self.rounds and entry.round <= self.rounds[-1].round:
            raise ValueError(f"round {entry.round} cannot come after round {self.rounds[-1].round}")
        self.rounds.append(entry)

    def by_phase(self) -> dict[str, Cost]:
        """Every phase's cost up to now, what is open counted as far as it has come."""
        now = self.clock()
        costs = dict(self.costs)
        inner = 0.0  # seconds that the visit one level further in has been open
        for visit in reversed(self._open):
            cost = self._known(visit.cost(now))
            cost.seconds -= inner
            costs[visit.name] += cost
            inner = now - visit.entered
        return costs

    def total(self) -> Cost:
        """The sum over all phases."""
        return sum(self.by_phase().values(), Cost())

    def selecting(self) -> Cost:
        """The sum over SELECTING."""
        costs = self.by_phase()
        return sum((costs[name] for name in SELECTING), Cost())

    def selection_share(self) -> str:
        """A line: what choosing rows cost, as a share of the whole run."""
        selecting, total = self.selecting(), self.total()
        seconds = f"{selecting.seconds / (total.seconds or 1.0):.0%} of"
        if selecting.flops is None or not total.flops:
            return f"selection cost {seconds} the run's seconds"
        return (
            f"selection cost {selecting.flops / total.flops:.0%} of the run's FLOPs and {seconds} its seconds"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold. Taken inside an open phase it has that phase's cost so far."""
        costs = self.by_phase()
        return {
            "phases": {name: asdict(cost) for name, cost in costs.items()},
            "total": asdict(sum(costs.values(), Cost())),
            "rounds": [_plain(entry) for entry in self.rounds],
            **({} if self.predicted is None else {"predicted": dict(self.predicted)}),
            **({"disk": dict(self.disk)} if self.disk else {}),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter) -> Ledger:
        """Go on counting from `to_dict`. Work lost between that moment and a crash is in no ledger."""
        ledger = cls(clock=clock)
        for name, cost in state["phases"].items():
            _check_phase(name)
            ledger.costs[name] = Cost(**cost)
        ledger.rounds = [Round(**entry) for entry in state["rounds"]]
        ledger.predicted = state.get("predicted")
        ledger.disk = state.get("disk", {})
        return ledger

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON; at any kill `path` is either the old file or the new one, whole."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False))

    def table(self) -> list[tuple[str, ...]]:
        """Printable rows under TABLE_HEADER: the phases that cost something, then the total."""
        return table_of(self.by_phase())

    def _known(self, cost: Cost) -> Cost:
        passed = cost.tokens or cost.flops
        return cost if self.counts_flops or not passed else replace(cost, flops=None)

    def _take_from_open(self, seconds: float) -> None:
        if self._open:
            self._open[-1].elsewhere += seconds


def overlap(last: Rows | None, now: Rows) -> float | None:
    """Share of the rows `now` that were among the rows `last`; None when there is no last coreset."""
    return None if last is None else float(np.isin(now, last).mean())


def _check_phase(name: str) -> None:
    if name not in PHASES:
        raise ValueError(f"no phase {name!r} in the ledger; the phases are {', '.join(PHASES)}")


def _plain(entry: Round) -> dict[str, Any]:
    """As JSON can hold it: null for what is not finite."""
    measures = {
        name: None if value is None or not np.isfinite(value) else float(value)
        for name, value in entry.approximation.items()
    }
    return {**asdict(replace(entry, approximation={})), "approximation": measures}


def table_of(costs: Mapping[str, Cost]) -> list[tuple[str, ...]]:
    """Printable rows under TABLE_HEADER: the phases that cost something, then the total."""
    total = sum(costs.values(), Cost())
    spent = [(name, cost) for name, cost in costs.items() if cost != Cost()]
    return [_printable(name, cost, total.seconds) for name, cost in [*spent, ("total", total)]]


def _printable(name: str, cost: Cost, whole: float) -> tuple[str, ...]:
    share = f"{cost.seconds / whole:.0%}" if whole > 0 else "-"
    flops = "unknown" if cost.flops is None else f"{cost.flops:.2e}" if cost.flops else "-"
    return name, f"{cost.seconds:.1f}", share, f"{cost.rows:,}", f"{cost.tokens:,}", flops


# ------------------------------------------------------------------------------------------------- FLOPs


@dataclass(frozen=True)
class ModelShape:
    """What the FLOPs of a decoder depend on. Embedding look-ups, norms and activations are left out."""

    block_parameters: int  # P_b: entries of the weight matrices of all blocks (MoE: of the active experts)
    head_parameters: int  # P_h: vocabulary × width, tied or not
    layers: int  # L
    attention_width: int  # d: query heads × head dimension


#: Signals by what they make the model do; a pass is shared by all signals that need it.
TRUNK_SIGNALS = frozenset({"response_embedding", "prompt_embedding", "weighted_embedding", TARGET_SIMILARITY})
LOSS_SIGNALS = frozenset({"loss", "head_gradient"})
UNCONDITIONAL_SIGNALS = frozenset({"unconditional_loss", "kn_gradient"})
EMPTY_PROMPT_SIGNALS = frozenset({EMPTY_PROMPT_LOSS})
GRADIENT_SIGNALS = frozenset({"gradient_norm", "gradient", "target_cosine", "kn_gradient", "if_gradient"})
_KNOWN_SIGNALS = (
    TRUNK_SIGNALS | LOSS_SIGNALS | UNCONDITIONAL_SIGNALS | EMPTY_PROMPT_SIGNALS | GRADIENT_SIGNALS
)


def forward_flops(shape: ModelShape, lengths: Array, scored: Array | None = None) -> float:
    """2·P_b·ΣT + 4·L·d·ΣT² + 2·P_h·ΣR for sequences of T tokens of which R pass the head.

    A token meets every weight once, one multiply and one add: 2·P. Attention in one layer makes the scores
    Q·Kᵀ and the mixture A·V, T×T×d multiplies each: 4·T²·d. The full square is counted, as eager attention
    and PyTorch's FlopCounterMode do; a kernel that skips the masked half does less [choice].

    lengths (m,) tokens of each sequence, without padding
    scored  (m,) tokens of each that pass the head; None = all
    """
    tokens, squares = _sums(lengths)
    head_tokens = tokens if scored is None else _sums(scored)[0]
    return (
        2.0 * shape.block_parameters * tokens
        + 4.0 * shape.layers * shape.attention_width * squares
        + 2.0 * shape.head_parameters * head_tokens
    )


def training_flops(
    shape: ModelShape, lengths: Array, *, adapter_parameters: int | None = None, checkpointing: bool = False
) -> float:
    """FLOPs of training once on each sequence, without the optimizer's update (it does not grow with tokens).

    Full fine-tuning: forward 1, backward through activations 1, through weights 1 (2·P a token each), so
    6·P·ΣT; attention has two products forward and four backward: 12·L·d·ΣT².
    LoRA with A adapter parameters: frozen weights need no gradient, 4·P·ΣT; the adapters need all three,
    6·A·ΣT; attention as before.
    Gradient checkpointing runs the blocks forward once more: 2·(P_b + A)·ΣT + 4·L·d·ΣT². (PyTorch stops each
    block short of its last product, a few per cent of the step, which is not taken off here.)

    adapter_parameters  A; None = full fine-tuning
    """
    tokens, squares = _sums(lengths)
    attention = 4.0 * shape.layers * shape.attention_width * squares
    parameters = shape.block_parameters + shape.head_parameters
    adapter = adapter_parameters or 0
    weights = 6.0 * parameters if adapter_parameters is None else 4.0 * parameters + 6.0 * adapter
    again = 2.0 * (shape.block_parameters + adapter) * tokens + attention if checkpointing else 0.0
    return weights * tokens + 3.0 * attention + again


def measurement_flops(
    shape: ModelShape,
    lengths: Array,
    responses: Array,
    signals: Collection[str],
    *,
    blocks: int = 0,
    chosen_parameters: int = 0,
    empty_prompt: int = 1,
) -> float:
    """FLOPs of measuring these signals once; signals that need the same pass share it.

    embeddings           forward through the blocks, no head
    loss, head_gradient  and 2·P_h·ΣR: only the R response tokens pass the head
    unconditional_loss   a second forward, over the R response tokens after one token of context
    empty_prompt_loss    another, after the `empty_prompt` tokens that all prompts end with
    gradient signals     backward through activations only: 2·P_h·ΣR for the head, for the b last of L blocks
                         (b/L)·(2·P_b·ΣT + 8·L·d·ΣT²), and 2·m·ΣT to form the gradients of the m chosen
                         parameters: an upper bound, as ghost norms and factorised projections do less.
    kn_gradient          the same of the R response tokens after one token of context
    if_gradient          both: those of gradient and of kn_gradient
    Rows of a reference or a target are rows too: count them by a call of their own. Preconditioning and
    sketching work entry by entry, and are left out as norms and activations are.

    lengths, responses (m,) tokens of each row and of its response; blocks = b; chosen_parameters = m
    Raises ValueError for a signal that is not known here.
    """
    asked = frozenset(signals)
    if unknown := sorted(asked - _KNOWN_SIGNALS):
        known = ", ".join(sorted(_KNOWN_SIGNALS))
        raise ValueError(f"no FLOP formula for {', '.join(unknown)}; there is one for {known}")
    scored = np.asarray(responses)
    flops = 0.0
    if asked & EMPTY_PROMPT_SIGNALS:
        flops += forward_flops(shape, scored + empty_prompt, scored)
    if whole := (asked - UNCONDITIONAL_SIGNALS - EMPTY_PROMPT_SIGNALS):
        needs_head = bool(whole & (LOSS_SIGNALS | GRADIENT_SIGNALS))
        flops += forward_flops(shape, lengths, scored if needs_head else np.zeros_like(scored))
        if whole & GRADIENT_SIGNALS:
            flops += _backward_flops(shape, np.asarray(lengths), scored, blocks, chosen_parameters)
    if alone := (asked & UNCONDITIONAL_SIGNALS | asked & {"if_gradient"}):
        flops += forward_flops(shape, scored + 1, scored)
        if alone & GRADIENT_SIGNALS:
            flops += _backward_flops(shape, scored + 1, scored, blocks, chosen_parameters)
    return flops


def _backward_flops(
    shape: ModelShape, lengths: Array, scored: Array, blocks: int, chosen_parameters: int
) -> float:
    tokens, squares = _sums(lengths)
    attention = 8.0 * shape.layers * shape.attention_width * squares
    trunk = blocks / shape.layers * (2.0 * shape.block_parameters * tokens + attention)
    return trunk + 2.0 * shape.head_parameters * _sums(scored)[0] + 2.0 * chosen_parameters * tokens


def _sums(lengths: Array | Sequence[int]) -> tuple[float, float]:
    """ΣT and ΣT²; float64 since T² in int32 overflows."""
    values = np.asarray(lengths, dtype=np.float64)
    return float(values.sum()), float((values * values).sum())
