"""What the page shows, as plain numbers and texts: one dict that JSON can hold, read from a run directory.

Everything is bounded, whatever the pool: at most ROWS rows with their text, REFRESHES refreshes in detail,
SOURCES sources. What was left out is said in `notes`, which the page prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coretune.ledger import PHASES, SELECTING
from coretune.recording.by_source import largest
from coretune.recording.components import CODES, MEANING, OF_CHOSEN
from coretune.recording.run_files import RunFiles
from coretune.recording.selection_log import OWN
from coretune.report.details import Details, details
from coretune.report.filtered import PREFIX, examples, filtered
from coretune.report.targets import EXAMPLES, served
from coretune.report.training import source_losses, spikes
from coretune.types import Array

LENGTH_BINS = 24


def gather(run: RunFiles, history: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """history: the trainer's log lines of a run that is still going; None = as the run directory has them."""
    history = run.history if history is None else history
    found = details(run)
    chosen = [run.chosen(number) for number in found.rounds]
    taken = filtered(run, found.rounds)
    rows = [np.array([run.row_of[name] for name in ids], np.int64) for ids in chosen]
    return {
        "title": _title(run),
        "about": _about(run),
        "headline": _headline(run, history, rows),
        "refreshes": _refreshes(run, found),
        "rows": found.rows,
        "states": found.states,
        "components": found.components,
        "filtered": taken,
        "targets": served(run, found.rounds[-1]),
        "filters": examples(run, found.rounds[-1], list(taken[-1])),
        "representatives": found.representatives,
        "meaning": dict(MEANING),
        "codes": list(CODES),
        "of_chosen": list(OF_CHOSEN),
        "coverage": found.coverage,
        "sources": _sources(run, rows),
        "lengths": _lengths(run, rows),
        "copies": _copies(run, rows),
        "overlap": _overlap(rows),
        "approximation": _approximation(run),
        "said": _said(run, found),
        "loss": _loss(history),
        "source_losses": source_losses(run, found.rounds),
        "spikes": spikes(run),
        "account": run.account,
        "cost": _cost(run),
        "map": {"there": run.pool["x"].null_count == 0, **run.map_facts},
        "compare": run.comparison,
        "notes": _notes(run, found),
    }


def _title(run: RunFiles) -> str:
    return run.path.resolve().name


def _about(run: RunFiles) -> list[list[str]]:
    config = run.config
    section, versions = config.get("coreset", {}), config.get("provenance", {}).get("versions", {})
    known = [
        ("method", _method(section.get("method"))),
        ("budget", section.get("budget")),
        ("refresh every", section.get("refresh_every")),
        ("model", config.get("model_name_or_path")),
        ("data", _data(config.get("train_data"))),
        ("seed", config.get("seed")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if k in ("coretune", "torch", "trl"))),
    ]
    return [[name, str(value)] for name, value in known if value not in (None, "")]


def _data(given: Any) -> str:
    """Several files and hub ids in a line; an entry is known by its path."""
    entries = given if isinstance(given, list) else [given]
    return ", ".join(str(each["path"] if isinstance(each, Mapping) else each or "") for each in entries)


def _method(written: Any) -> Any:
    """The name alone, of {name: {its settings}} too."""
    return next(iter(written), None) if isinstance(written, Mapping) else written


def _headline(run: RunFiles, history: Sequence[Mapping[str, Any]], rows: list[Array]) -> list[dict[str, str]]:
    """Cards: what is large, and a line below it."""
    n = len(run.ids)
    distinct = len(np.unique(np.concatenate(rows)))
    cards = [
        {
            "label": "Coreset",
            "value": f"{len(rows[-1]):,} rows",
            "note": f"of {n:,}, chosen once"
            if len(run.rounds) == 1
            else f"of {n:,}; {len(run.rounds)} selections, {distinct:,} different rows in all",
        }
    ]
    cards += _quality(run, history)
    phases = run.ledger.get("phases")
    if not phases:
        return cards
    total, disk = run.ledger["total"], sum(run.ledger.get("disk", {}).values())
    choosing = sum(phases[name]["seconds"] for name in SELECTING)
    share = choosing / total["seconds"] if total["seconds"] else 0.0
    cards.append(
        {
            "label": "Time",
            "value": _duration(total["seconds"]),
            "note": f"{share:.0%} of it measuring and choosing"
            + (f"; {disk / 2**20:,.0f} MiB on disk" if disk else ""),
        }
    )
    if total["flops"]:
        cards.append(
            {"label": "Compute", "value": f"{_power(total['flops'])} FLOPs", "note": _break_even(run, phases)}
        )
    elif total["flops"] is None:
        cards.append({"label": "Compute", "value": "unknown", "note": "FLOPs of a part were not counted"})
    return cards


def _quality(run: RunFiles, history: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The last held-out metrics: those of the finished run, else of the last evaluation."""
    metrics = dict(run.metrics)
    lines = [line for line in history if "eval_loss" in line]
    if not metrics and lines:
        metrics = dict(lines[-1])
    names = {"eval_loss": "Held-out loss", "eval_exact_match": "Exact match", "eval_rougeL": "ROUGE-L"}
    first = f"at the first evaluation {lines[0]['eval_loss']:.3f}" if len(lines) > 1 else "nats a token"
    notes = {"eval_loss": first, "eval_exact_match": "answers given to the token", "eval_rougeL": "F1"}
    values = {name: metrics[name] for name in names if name in metrics}
    return [
        {
            "label": names[name],
            "value": f"{value:.1%}" if name == "eval_exact_match" else f"{value:.3f}",
            "note": notes[name],
        }
        for name, value in values.items()
    ]


def _break_even(run: RunFiles, phases: Mapping[str, Any]) -> str:
    """What choosing cost in steps of training."""
    choosing = sum(phases[name]["flops"] or 0 for name in SELECTING)
    trained, steps = phases["training"], run.config.get("training", {}).get("max_steps")
    whole = (trained["flops"] or 0) + (phases["warm-up"]["flops"] or 0)
    if not whole or not choosing:
        return "nothing was measured" if not choosing else "none of it in training yet"
    if not steps:
        return f"choosing cost {choosing / whole:.0%} of what training did"
    share = choosing / run.ledger["total"]["flops"]
    worth = f"as much as {choosing / whole * int(steps):,.0f} of the {int(steps):,} steps"
    return f"{share:.0%} of it for choosing, {worth}"


def _refreshes(run: RunFiles, found: Details) -> list[dict[str, Any]]:
    entries = {entry["round"]: entry for entry in run.ledger.get("rounds", [])}
    kept = ("rows_measured", "rows_chosen", "seconds", "overlap")
    return [
        {"round": number, "step": run.step_of(number), **{k: entries.get(number, {}).get(k) for k in kept}}
        for number in found.rounds
    ]


def _sources(run: RunFiles, rows: list[Array]) -> dict[str, Any]:
    """Rows by source: of the pool and of each coreset; the largest SOURCES by name."""
    names, group = largest(run.pool["source"].to_pylist())
    counts = [np.bincount(group[some], minlength=len(names)).tolist() for some in rows]
    return {"names": names, "pool": np.bincount(group).tolist(), "coreset": counts}


def _lengths(run: RunFiles, rows: list[Array]) -> dict[str, Any]:
    """Shares of rows by tokens, in whole bins up to the 99.5th percentile; longer ones in the last."""
    tokens = run.column("tokens")
    low, top = int(tokens.min()), int(np.quantile(tokens, 0.995))
    width = max(1, -(-(top - low + 1) // LENGTH_BINS))
    edges = np.arange(low, top + width + 1, width) - 0.5
    inside = np.clip(tokens, edges[0], edges[-1])

    def share(values: Array) -> list[float]:
        return _rounded(np.histogram(values, edges)[0] / max(len(values), 1))

    return {"edges": edges.tolist(), "pool": share(inside), "coreset": [share(inside[some]) for some in rows]}


def _copies(run: RunFiles, rows: list[Array]) -> dict[str, Any] | None:
    """Share of rows with a near-duplicate in the pool, and of rows whose duplicate is in the same coreset."""
    if run.pool["copies"].null_count:
        return None
    group = run.column("copies").astype(np.int64)
    size = np.bincount(group, minlength=len(group))[group]
    repeated = [1 - len(np.unique(group[some])) / len(some) for some in rows]
    return {
        "pool": float((size > 1).mean()),
        "coreset": _rounded([float((size[some] > 1).mean()) for some in rows]),
        "repeated": _rounded(repeated),
        "pool_repeated": 1 - len(np.unique(group)) / len(group),
    }


def _overlap(rows: list[Array]) -> list[list[float]]:
    """(R, R) share of the column's coreset that is in the row's."""
    sets = [set(some.tolist()) for some in rows]
    return [[round(len(a & b) / len(b), 4) for b in sets] for a in sets]


def _approximation(run: RunFiles) -> list[dict[str, Any]]:
    """Figures of the refreshes where an audit was asked for."""
    found = []
    for entry in run.ledger.get("rounds", []):
        compared = {name: value for name, value in entry["approximation"].items() if name not in OWN}
        if compared:
            found.append({"round": entry["round"], "step": run.step_of(entry["round"]), **compared})
    return found


def _said(run: RunFiles, found: Details) -> list[dict[str, Any]]:
    """What the method says of each selection shown: `Coreset.figures`."""
    entries = {entry["round"]: entry for entry in run.ledger.get("rounds", [])}
    said = [entries.get(number, {}).get("selection", {}) for number in found.rounds]
    return [{name: value for name, value in one.items() if not name.startswith(PREFIX)} for one in said]


def _loss(history: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """{"training", "held-out", …}: [step, value] pairs."""
    found: dict[str, list[list[float]]] = {}
    names = {"loss": "training", "eval_loss": "held-out", "eval_exact_match": "exact match"}
    for line in history:
        for key, name in names.items():
            if key in line and line.get("step") is not None:
                found.setdefault(name, []).append([line["step"], round(float(line[key]), 5)])
    return found


def _cost(run: RunFiles) -> list[dict[str, Any]]:
    """Phases that cost something, with what was predicted of them where there was a plan."""
    phases = run.ledger.get("phases", {})
    predicted = run.ledger.get("predicted", {}).get("phases", {})
    return [
        {"phase": name, **phases[name], "predicted": _predicted(predicted.get(name))}
        for name in PHASES
        if name in phases and (phases[name]["seconds"] or phases[name]["rows"])
    ]


def _predicted(cost: Mapping[str, Any] | None) -> str:
    """Seconds and FLOPs where they were predicted; without a plan FLOPs alone are."""
    if cost is None:
        return ""
    parts = ["" if cost["seconds"] is None else f"{cost['seconds']:.1f} s"]
    parts.append(f"{cost['flops']:.2e} FLOPs" if cost["flops"] else "")
    return ", ".join(filter(None, parts))


def _notes(run: RunFiles, found: Details) -> dict[str, str]:
    """What the page must say of itself, by section."""
    notes = {"map": "", "rows": "", "refreshes": "", "targets": ""}
    if len(run.examples) > EXAMPLES:
        notes["targets"] = f"The first {EXAMPLES} of {len(run.examples):,} examples are shown."
    facts = run.map_facts
    if "variance_shown" in facts:
        notes["map"] = (
            f"The two principal components of {facts['embedding'].replace('_', ' ')}, first measurement; "
            f"they show {facts['variance_shown']:.0%} of its variance."
        )
    if found.left_out:
        notes["rows"] = found.left_out
    if len(found.rounds) < len(run.rounds):
        notes["refreshes"] = f"{len(found.rounds)} of {len(run.rounds)} selections are shown, evenly spaced."
    return notes


def _power(value: float) -> str:
    """As 3.8·10¹²."""
    number, exponent = f"{value:.1e}".split("e")
    return f"{number}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
