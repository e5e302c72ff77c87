"""What a run says of a selection: figures for every logger, a line for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coretune.escaping import shown
from coretune.filters.contrast import MOST_WRONG
from coretune.ledger import Ledger, Round
from coretune.rounds.state import State
from coretune.types import Array

PREFIX = "coreset/"
#: Figures of a round that compare nothing with a full measurement.
OWN = ("graph_recall", "near_copies", "rows_online")
NAMED = 10  # rows named in a warning
FILTERED = "filtered_"  # begins the figures that say how many rows a filter took out


def figures(entry: Round, state: State) -> dict[str, float]:
    """`coreset/…` -> number, for the loggers a trainer reports to. What is not known is left out.

    round, rows, tokens (of the coreset), pool (rows), rows_measured, seconds (of the refresh), overlap (share
    of the rows that were in the last coreset), graph_recall, near_copies (share of the pool), rows_online,
    approximation/… (see `approximation.compare`), and the numbers that the method says of its selection
    """
    found: dict[str, float | None] = {
        "round": entry.round,
        "rows": entry.rows_chosen,
        "tokens": float(state.pool.cost[state.coreset.indices].sum()),
        "pool": state.pool.n,
        "rows_measured": entry.rows_measured,
        "seconds": entry.seconds,
        "overlap": entry.overlap,
    }
    for name, value in entry.approximation.items():
        found[name if name in OWN else f"approximation/{name}"] = value
    said = {name: value for name, value in entry.selection.items() if isinstance(value, int | float)}
    return {PREFIX + name: float(value) for name, value in {**said, **found}.items() if value is not None}


def totals(ledger: Ledger) -> dict[str, float]:
    """What the run has cost so far but for evaluation: seconds, share of them choosing, FLOPs if known."""
    costs = {name: cost for name, cost in ledger.by_phase().items() if name != "evaluation"}
    seconds = sum(cost.seconds for cost in costs.values())
    choosing = sum(costs[name].seconds for name in ("measurement", "graph", "selection"))
    found = {"cost/seconds": round(seconds, 3)}
    if seconds:
        found["cost/choosing"] = round(choosing / seconds, 4)
    flops = [cost.flops for cost in costs.values()]
    return found if None in flops else {**found, "cost/flops": float(sum(filter(None, flops)))}


def so_far(logs: Mapping[str, float]) -> str:
    """The totals of a log line in a few words."""
    flops = f", {logs['cost/flops']:.1e} FLOPs" if "cost/flops" in logs else ""
    return f"{logs.get('cost/choosing', 0.0):.0%} choosing{flops}"


def is_selection(logs: Mapping[str, object]) -> bool:
    """Whether these logged figures are of a selection."""
    return f"{PREFIX}round" in logs


def line(logs: Mapping[str, float], step: int) -> str:
    """The figures as one line."""
    found = {name.removeprefix(PREFIX): value for name, value in logs.items() if name.startswith(PREFIX)}
    kept = f", {found['overlap']:.0%} of them kept" if "overlap" in found else ""
    measured = f"; measured {found['rows_measured']:,.0f} rows" if found["rows_measured"] else ""
    if found.get("rows_online"):
        measured += f", {found['rows_online']:,.0f} more by online signals"
    parts = [
        f"step {step}: coreset of {found['rows']:,.0f} of {found['pool']:,.0f} rows, "
        f"{found['tokens']:,.0f} tokens{kept}{measured}; {found['seconds']:.1f} s"
    ]
    if "graph_recall" in found:
        parts.append(f"graph recall {found['graph_recall']:.3f}")
    if "near_copies" in found:
        parts.append(f"{found['near_copies']:.1%} of the pool have a near-duplicate")
    parts += _filters(found)
    audited = [
        f"{name.removeprefix('approximation/')} {value:.3f}"
        for name, value in found.items()
        if name.startswith("approximation/")
    ]
    if audited:
        parts.append(f"against a full measurement: {', '.join(audited)}")
    return "; ".join(parts)


def _filters(found: Mapping[str, float]) -> list[str]:
    """How many rows each filter took out, and whether noise detection is on."""
    taken = {name.removeprefix(FILTERED): many for name, many in found.items() if name.startswith(FILTERED)}
    parts = []
    if taken:
        parts.append("filtered out: " + ", ".join(f"{name} {many:,.0f}" for name, many in taken.items()))
    if "mismatched_loss" not in found:
        return parts
    costs = (
        f"median loss {found['matched_loss']:.2f} nats, after another prompt {found['mismatched_loss']:.2f}"
    )
    drawn = "drawn at random: " if "drawn" in found else ""
    if "seem_wrong" in found:
        parts.append(f"{drawn}none of the pairs' responses seems wrong ({costs})")
    elif not found["noise_on"]:
        parts.append(f"{drawn}noise detection is off ({_why_off(found)}{costs})")
    return parts


def _why_off(found: Mapping[str, float]) -> str:
    """Of the filter `noise`; "" for one that decides by the median losses."""
    if "noise_auc" not in found:
        return ""
    why = f"right and wrong responses are separated with an AUC of {found['noise_auc']:.2f}; "
    if found["noise_share"] > MOST_WRONG:
        why += f"{found['noise_share']:.0%} of the rows seem wrong, more than {MOST_WRONG:.0%}; "
    return why


def excluded(before: Array, now: Array, ids: Sequence[str]) -> str | None:
    """A warning that names the rows usable (n,) `before` and not `now`; None when there are none."""
    lost = np.flatnonzero(before & ~now)
    if len(lost) == 0:
        return None
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    names = ", ".join(shown(ids[row]) for row in lost[:NAMED])
    rows = "row is" if len(lost) == 1 else "rows are"
    return f"{len(lost)} {rows} excluded from now on, a signal was not finite: {names}{more}"


def no_pairs(prompt_length: Array) -> str:
    """That noise detection is off, and why, where no response can be held against another row's prompt.

    prompt_length  (n,) tokens before the first that the loss counts
    """
    off = "noise detection is off: "
    if (prompt_length > 1).mean() > 0.5:
        return f"{off}the responses, or the prompts, of most rows are the same"
    without = f"{(prompt_length <= 1).sum():,} of {len(prompt_length):,} rows"
    return (
        f"{off}{without} have no prompt apart from what the loss counts; for messages set "
        "assistant_only_loss, for text give prompt and completion, and leave completion_only_loss on"
    )
