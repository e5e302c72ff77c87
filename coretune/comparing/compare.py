"""Arms against each other: the same data, model, seeds and steps, then the same compute, choosing included.

    jobs at equal steps ─► results ─► how many steps each arm affords ─► jobs at equal compute ─► results
                              └──────────────────────┴──────────────► tables, paired tests, curves

A finished job is a file under OUT/results, named by all that decides it; it is never run again, and what was
cut is begun anew. All arms keep their measurements in one store, OUT/signals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from coretune.comparing.arms import arm_section
from coretune.comparing.compute import most
from coretune.config import ConfigError, RunConfig, check_config
from coretune.files import write_json
from coretune.storing.inputs import inputs

RESULTS, SIGNALS, COMPARISON = "results", "signals", "compare.json"
BASELINE = "random"
CURVE_POINTS = 8  # evaluations during training, where the config sets none
NEAR = 1.05  # an arm that already computes this near to the most expensive one is not trained again
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run: an arm, a seed, a number of steps."""

    arm: str
    seed: int
    steps: int
    config: RunConfig

    @property
    def key(self) -> str:
        """Of the config but for its folders, of the content of all that it names, of versions and of the
        package's code: no result is another's."""
        kept = self.config.model_dump(mode="json", exclude={"output_dir", "signals_dir", "report"})
        parts = [kept, inputs(kept), code()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        return name_of(self.arm, self.seed, self.steps)


def name_of(arm: str, seed: int, steps: int) -> str:
    """The name of a run's folder."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in arm)
    return f"{plain}-seed{seed}-steps{steps}"


@cache
def code() -> str:
    """A hash of the source code of the package."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def jobs_of(config: RunConfig, arms: Sequence[str], seeds: Sequence[int], out: Path) -> list[Job]:
    """At equal steps. ConfigError where arms could not be compared, before anything is run."""
    steps = config.training.get("max_steps", -1)
    if steps <= 0:
        raise ConfigError("compare needs training.max_steps, so that all arms train equally long")
    if not config.evaluated:
        raise ConfigError("compare needs eval_data or eval_fraction, to judge the arms by")
    if len(set(arms)) < len(arms):
        raise ConfigError(f"an arm is given twice: {', '.join(arms)}")
    return [job_of(config, arm, seed, steps, out) for seed in seeds for arm in arms]


def job_of(config: RunConfig, arm: str, seed: int, steps: int, out: Path) -> Job:
    """One arm with one seed for so many steps."""
    training = {"eval_strategy": "steps", "eval_steps": max(1, steps // CURVE_POINTS), **config.training}
    raw = config.model_dump(exclude_none=True, exclude={"provenance", "resume_from_checkpoint"})
    raw |= {
        "coreset": arm_section(arm, config.coreset),
        "training": {**training, "max_steps": steps, "save_strategy": "no", "load_best_model_at_end": False},
        "seed": seed,
        "report": "never",
        "signals_dir": str(out / SIGNALS),
        "evaluate": raw.get("evaluate", {"metric": ["loss", "exact_match"]}),
        "output_dir": str(out / name_of(arm, seed, steps)),
    }
    return Job(arm, seed, steps, check_config(raw))


@dataclass(frozen=True)
class Prices:
    """FLOPs of a run of any length.

    once     the warm-up and the first measurement: paid whatever the length
    step     of training, after the warm-up
    refresh  of the measurements of a later selection
    warm     steps of the warm-up
    every    steps between selections; 0 = there is one only
    """

    once: float
    step: float
    refresh: float
    warm: int
    every: int

    def refreshes(self, steps: int) -> int:
        """Later selections in so many steps."""
        after = steps - self.warm
        return max(0, math.ceil(after / self.every) - 1) if self.every and after > 0 else 0

    def of(self, steps: int) -> float:
        return self.once + self.step * max(0, steps - self.warm) + self.refresh * self.refreshes(steps)

    def steps_for(self, flops: float, at_least: int) -> int:
        """The most steps that cost no more than that, and never fewer than `at_least`."""
        return max(at_least, most(self.of, flops))


def counted(results: Sequence[Result]) -> bool:
    """Whether the FLOPs of all of them are known."""
    return all(result["flops"] is not None for result in results)


def afforded(results: Sequence[Result]) -> dict[str, int]:
    """Steps at which each arm computes what the most expensive arm does: arm -> steps.

    By each arm's mean prices; an arm within NEAR of the most expensive one keeps its steps.
    """
    by_arm: dict[str, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], []).append(result)
    flops = {arm: float(np.mean([r["flops"] for r in some])) for arm, some in by_arm.items()}
    largest, found = max(flops.values()), {}
    for arm, some in by_arm.items():
        prices = {
            name: float(np.mean([r["prices"][name] for r in some])) for name in ("once", "step", "refresh")
        }
        first = some[0]
        known = Prices(**prices, warm=first["prices"]["warm"], every=first["prices"]["every"])
        near = flops[arm] * NEAR >= largest
        found[arm] = first["steps"] if near else known.steps_for(largest, first["steps"])
    return found


# -------------------------------------------------------------------------------------------- statistics


def mean_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; the error of a single value is NaN."""
    array = np.asarray(values, float)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), float(error)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float]:
    """Mean difference over the seeds that both have, and the p-value of the paired t-test; NaN below two."""
    seeds = sorted(set(ours) & set(theirs))
    difference = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2 or difference.std() == 0:
        return float(difference.mean()) if len(seeds) else float("nan"), float("nan")
    return float(difference.mean()), float(stats.ttest_1samp(difference, 0.0).pvalue)


def table(results: Sequence[Result], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines: an arm each, every metric with its error, and the first against the baseline."""
    metrics = list(results[0]["metrics"])
    header = ["arm", "seeds", "steps", *(name.replace("_", " ") for name in metrics)]
    header += [f"{metrics[0]} − {baseline}", "p", "FLOPs", "seconds", "choosing"]
    by_arm: dict[str, list[Result]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], []).append(result)
    lines = []
    for arm, some in by_arm.items():
        figures = [_plus_minus(*mean_se([r["metrics"][name] for r in some])) for name in metrics]
        against = ["", ""]
        if arm != baseline and baseline in by_arm:
            sides = ({r["seed"]: r["metrics"][metrics[0]] for r in by_arm[name]} for name in (arm, baseline))
            difference, p = paired(*sides)
            against = [f"{difference:+.3f}", "-" if math.isnan(p) else f"{p:.3f}"]
        mean = {key: float(np.mean([r[key] for r in some])) for key in ("seconds", "choosing")}
        flops = f"{np.mean([r['flops'] for r in some]):.2e}" if counted(some) else "unknown"
        costs = [flops, f"{mean['seconds']:.0f}", f"{mean['choosing']:.0f}"]
        lines.append([arm, str(len(some)), f"{some[0]['steps']:,}", *figures, *against, *costs])
    return header, lines


def curves(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Held-out loss against FLOPs, choosing included: an arm each, means over seeds of its longest runs."""
    found = []
    for arm in dict.fromkeys(result["arm"] for result in results):
        longest = max(result["steps"] for result in results if result["arm"] == arm)
        runs = [result for result in results if (result["arm"], result["steps"]) == (arm, longest)]
        lines = [point for result in runs for point in result["curve"]]
        steps = sorted({step for step, _, _ in lines})
        points = [[(flops, loss) for s, flops, loss in lines if s == step] for step in steps]
        losses = [mean_se([loss for _, loss in some]) for some in points]
        found.append(
            {
                "arm": arm,
                "flops": [float(np.mean([flops for flops, _ in some])) for some in points],
                "loss": [mean for mean, _ in losses],
                "error": [None if math.isnan(error) else error for _, error in losses],
            }
        )
    return found


def summary(title: str, steps: Sequence[Result], compute: Sequence[Result], baseline: str) -> dict[str, Any]:
    """What OUT/compare.json holds: the tables, the curves, every result."""
    tables = []
    for name, results in (("At equal steps", steps), ("At equal compute, choosing included", compute)):
        if results:
            header, lines = table(results, baseline)
            tables.append({"title": name, "header": header, "rows": lines})
    everything = [*steps, *(result for result in compute if result not in steps)]
    return {"title": title, "tables": tables, "curves": curves(everything), "results": everything}


def write_summary(out: Path, found: Mapping[str, Any]) -> Path:
    """Write compare.json into the folder; its path."""
    write_json(out / COMPARISON, found)
    return out / COMPARISON


def _plus_minus(mean: float, error: float) -> str:
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
