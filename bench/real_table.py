"""Tables of bench/real.py, from the result files alone: mean ± standard error, differences paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coretune.comparing.compare import mean_se, paired

Result = Mapping[str, Any]
HEADER = (
    "arm",
    "seeds",
    "steps",
    "held-out loss",
    "loss − full",
    "exact match",
    "guard",
    "wrong rows",
    "rows",
    "FLOPs",
    "choosing",
    "seconds",
)
GAP, GAP_AT_THREE = 0.5, 0.8  # of the way from full to clean rows, at one epoch's compute and at three


def read_results(file: Path) -> list[Result]:
    """Finished runs; a last line that was cut by a kill is none."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append_result(file: Path, result: Result) -> None:
    """One more line; on a line of its own also after one that was cut."""
    before = file.read_bytes() if file.is_file() else b""
    with file.open("ab") as out:
        if before and not before.endswith(b"\n"):
            out.write(b"\n")
        out.write(json.dumps(result).encode() + b"\n")


def lines_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A line an arm, in the order in which the arms come."""
    full = {r["seed"]: r["loss"] for r in results if r["arm"] == "full"}
    lines = []
    for arm in dict.fromkeys(r["arm"] for r in results):
        some = [r for r in results if r["arm"] == arm]
        lines.append(
            (
                arm,
                ", ".join(str(r["seed"]) for r in some) if arm != "untouched" else "-",
                _mean(some, "steps", "{:,.0f}"),
                _plus_minus(some, "loss"),
                _against({r["seed"]: r["loss"] for r in some}, full)
                if arm not in ("full", "untouched")
                else "",
                _plus_minus(some, "exact_match"),
                _plus_minus(some, "guard"),
                _mean(some, "wrong", "{:.0%}"),
                _mean(some, "rows_distinct", "{:,.0f}"),
                _mean(some, "flops", "{:.2e}"),
                _choosing(some),
                _mean(some, "seconds", "{:,.0f}"),
            )
        )
    return lines


def markdown(title: str, results: Sequence[Result]) -> str:
    rows = [HEADER, tuple("---" for _ in HEADER), *lines_of(results)]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"### {title}\n\n{body}\n"


def missed(results: Sequence[Result]) -> list[str]:
    """Targets that grace misses on this pool, with how near it came."""
    arms = {arm: [r for r in results if r["arm"] == arm] for arm in ("grace", "full", "clean", "distinct")}
    if not arms["grace"] or not arms["full"]:
        return ["the arms grace and full are both needed for --check"]
    if len(arms["grace"]) < 2:
        return ["one seed has no standard error to judge by: --check needs two or more"]
    ours, full = (_losses(arms[arm]) for arm in ("grace", "full"))
    difference, _ = paired(ours, full)
    error = mean_se([ours[s] - full[s] for s in sorted(set(ours) & set(full))])[1]
    if not (arms["full"][0].get("wrong") and arms["clean"]):
        said = f"grace − full is {difference:+.3f} ± {error:.3f}, more than one standard error above 0"
        return [said] if difference > error else []
    gap = np.mean(list(full.values())) - np.mean(list(_losses(arms["clean"]).values()))
    wanted = GAP_AT_THREE if (arms["grace"][0]["epochs"] or 1) >= 3 else GAP
    found = []
    if -difference < wanted * gap:
        found.append(
            f"grace closes {-difference / gap:.0%} of the gap between full and clean, not {wanted:.0%}"
        )
    if arms["distinct"]:
        shared = sorted(set(ours) & set(theirs)) if (theirs := _losses(arms["distinct"])) else []
        mean, error = mean_se([ours[s] - theirs[s] for s in shared])
        if not mean < -2 * error:
            found.append(f"grace − distinct is {mean:+.3f} ± {error:.3f}, not two standard errors below 0")
    return found


def _losses(results: Sequence[Result]) -> dict[int, float]:
    return {r["seed"]: r["loss"] for r in results}


def _values(results: Sequence[Result], name: str) -> list[float]:
    return [r[name] for r in results if r.get(name) is not None]


def _mean(results: Sequence[Result], name: str, form: str) -> str:
    values = _values(results, name)
    return form.format(float(np.mean(values))) if values else ""


def _choosing(results: Sequence[Result]) -> str:
    values = [r["choosing_flops"] / r["flops"] for r in results if r.get("flops")]
    return f"{np.mean(values):.0%}" if values else ""


def _plus_minus(results: Sequence[Result], name: str) -> str:
    values = _values(results, name)
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    mean, error = mean_se(values)
    return f"{mean:.3f} ± {error:.3f}"


def _against(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    differences = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    if not differences:
        return ""
    if len(differences) == 1:
        return f"{differences[0]:+.3f}"
    mean, error = mean_se(differences)
    return f"{mean:+.3f} ± {error:.3f}"
