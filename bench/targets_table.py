"""Tables and targets of bench/targets.py, from the result files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from real_table import HEADER, Result, lines_of

from coretune.comparing.compare import mean_se

REFERENCE = "full"  # the whole pool for one epoch: what has to be reached
FEW, LITTLE, TASKS_WANTED = 5.0, 0.4, 2  # per cent of the rows, share of full's FLOPs, tasks
CHEAPER, WORSE = 1 / 3, 1.02  # the cascade's cost and loss against gradients for all
CASCADE = "narrow"


def groups(results: Sequence[Result]) -> dict[tuple[str, int, str], list[Result]]:
    """(task, examples, budget) -> its results, with those of the arms that know no target or no budget."""
    keys = dict.fromkeys(
        (r["task"], r["examples"], r["budget"]) for r in results if r["examples"] and r["budget"]
    )
    return {
        key: [
            r
            for r in results
            if r["task"] == key[0] and r["examples"] in (0, key[1]) and r["budget"] in ("", key[2])
        ]
        for key in keys
    }


def trained(results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r["loss"] is not None]


def unaffordable(results: Sequence[Result]) -> list[str]:
    """A line for each arm whose choosing alone costs more than it was allowed."""
    some = {r["arm"]: r["choosing_flops"] / r["epoch_flops"] for r in results if r["loss"] is None}
    return [f"{arm}: not trained, choosing alone costs {epochs:.2f} epochs" for arm, epochs in some.items()]


def markdown(key: tuple[str, int, str], results: Sequence[Result]) -> str:
    rows = [HEADER, tuple("---" for _ in HEADER), *lines_of(trained(results))]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([f"### {title(key)}", "", body, "", *unaffordable(results), ""])


def title(key: tuple[str, int, str]) -> str:
    return f"{key[0]}, {key[1]} examples, budget {key[2]}"


def missed(results: Sequence[Result]) -> list[str]:
    """What of the targets is missed, and by how much. Means over seeds, differences paired by seed."""
    found = groups(results)
    if not found or not _losses(results, REFERENCE):
        return [f"--check needs the arm gtp, and {REFERENCE} for one epoch"]
    lines = _reach(found)
    for key, some in found.items():
        lines += [f"{title(key)}: {line}" for line in (*_against_random(some), *_against_rivals(some))]
        lines += [f"{title(key)}: {line}" for line in _cascade(some)]
    return lines


def _reach(found: Mapping[tuple[str, int, str], list[Result]]) -> list[str]:
    """gtp with few rows and little compute reaches full's loss on some of the tasks."""
    reached, nearest = set(), dict[str, str]()
    best: dict[str, float] = {}
    for (task, examples, budget), some in found.items():
        if float(budget.rstrip("%")) > FEW or not (ours := trained(_of(some, "gtp"))):
            continue
        full = float(np.mean(list(_losses(some, REFERENCE).values())))
        loss = float(np.mean([r["loss"] for r in ours]))
        spent = float(np.mean([r["flops"] / r["epoch_flops"] for r in ours]))
        if loss <= full and spent <= LITTLE:
            reached.add(task)
        if loss - full < best.get(task, np.inf):
            best[task] = loss - full
            nearest[task] = (
                f"{task} {loss - full:+.3f} with {budget} and {spent:.0%} of the FLOPs ({examples})"
            )
    if len(reached) >= TASKS_WANTED:
        return []
    return [
        f"gtp with at most {FEW:g} % of the rows and {LITTLE:.0%} of full's FLOPs reaches full's loss on "
        f"{len(reached)} tasks, not {TASKS_WANTED}; nearest: {'; '.join(nearest.values()) or 'no run'}"
    ]


def _against_random(some: Sequence[Result]) -> list[str]:
    difference = _paired(some, "gtp", "random")
    if difference is None:
        return []
    mean, error = difference
    return [] if mean < -2 * error else [f"gtp − random is {mean:+.3f} ± {error:.3f}, not two errors below 0"]


def _against_rivals(some: Sequence[Result]) -> list[str]:
    """No worse than the best of less and rds: within one standard error."""
    rivals = {arm: np.mean(list(found.values())) for arm in ("less", "rds") if (found := _losses(some, arm))}
    if not rivals:
        return []
    best = min(rivals, key=lambda arm: rivals[arm])
    difference = _paired(some, "gtp", best)
    if difference is None or difference[0] <= difference[1]:
        return []
    return [f"gtp − {best} is {difference[0]:+.3f} ± {difference[1]:.3f}, more than one error above 0"]


def _cascade(some: Sequence[Result]) -> list[str]:
    """Gradients of few rows cost a third of those of all, and hardly any loss."""
    lines = []
    for method in ("gtp", "less"):
        whole, narrow = _of(some, method), _of(some, method, narrowed=True)
        if not whole or not narrow:
            continue
        cost = _mean(narrow, "choosing_flops") / _mean(whole, "choosing_flops")
        if cost > CHEAPER:
            lines.append(
                f"the cascade of {method} costs {cost:.0%} of the gradients of all, not {CHEAPER:.0%}"
            )
        if not trained(whole) or not trained(narrow):
            continue
        loss = _mean(trained(narrow), "loss") / _mean(trained(whole), "loss")
        if loss > WORSE:
            lines.append(f"the cascade of {method} has {loss - 1:.1%} more loss, not {WORSE - 1:.0%}")
    return lines


def _mean(results: Sequence[Result], name: str) -> float:
    return float(np.mean([r[name] for r in results]))


def _of(results: Sequence[Result], method: str, narrowed: bool = False) -> list[Result]:
    return [r for r in results if r["arm"].partition(":")[0] == method and (CASCADE in r["arm"]) == narrowed]


def _losses(results: Sequence[Result], method: str) -> dict[int, float]:
    return {r["seed"]: r["loss"] for r in trained(_of(results, method))}


def _paired(some: Sequence[Result], ours: str, theirs: str) -> tuple[float, float] | None:
    one, other = _losses(some, ours), _losses(some, theirs)
    shared = sorted(set(one) & set(other))
    return mean_se([one[s] - other[s] for s in shared]) if len(shared) > 1 else None


def summary(result: Mapping[str, Any]) -> str:
    loss = "not affordable" if result["loss"] is None else f"loss {result['loss']:.3f}"
    return f"{result['task']} {result['arm']} seed {result['seed']}: {loss}"
