"""A name in `coreset.method` -> a method and the settings of a `coreset` section. What is given beside it
counts before them, setting by setting.

grace        what the evidence chose: GRACE's coverage with our filters (docs/results.md)
grace-paper  GRACE as it was published, and nothing else: every setting with what the paper says of it
brief, gtp   as their papers have them (`select/brief.py`, `gtp.py`): one selection, after a warm-up run
rds, loss_drop   as their papers have them: one selection, by the model as it is before training

Every other method is bare: without filters, and with its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coretune.keys import put
from coretune.select import SELECTORS
from coretune.select.brief import Brief
from coretune.select.gtp import Gtp

#: What we add to GRACE's objective: which rows may be chosen. Any method takes the same list.
OUR_FILTERS: tuple[Any, ...] = ("duplicates", "noise", {"cooldown": {"by": "loss"}})

#: Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
#: arXiv:2604.11810, 2026: path of a setting -> value, what the paper says. [paper] stated there; [unknown]
#: not stated in what is known of it, then the value is ours. No official code is public.
GRACE_PAPER: Mapping[str, tuple[Any, str]] = {
    "filters": (
        [],
        "[paper] knows none: no row is kept out as noise, as a duplicate, or because it was chosen",
    ),
    "method.grace.lambda": (
        0.5,
        "[paper] combines representation diversity with gradient-based importance; [unknown] how much",
    ),
    "method.grace.importance": (
        "gradient_norm",
        "[paper] gradient-based importance; [unknown] which norm, of which layers",
    ),
    "method.grace.demand": ("equal", "[paper] knows no weights of the rows that are covered"),
    "method.grace.similarity": (
        "graph",
        "[paper] graph-guided: similarities along the k-NN graph; [unknown] outside it",
    ),
    "method.grace.embedding": (
        "response_embedding",
        "[paper] the model's representation of an example; [unknown] which",
    ),
    "refresh.k": (10, "[paper] a k-NN graph; [unknown] k"),
    "refresh.anchors": (
        "priority",
        "[paper] recompute priority of staleness and of the discrepancy with the neighbours",
    ),
    "refresh.anchor_share": (0.05, "[paper] a bounded number is measured again; [unknown] how many"),
    "refresh.beta": (0.5, "[paper] combines both; [unknown] how much of each"),
    "refresh.priority_score": (
        "gradient_norm",
        "[paper] the discrepancy of its importance with its neighbourhood",
    ),
    "refresh.scores": ([], "[paper] scores and embeddings alone are kept"),
    "refresh.propagate": (
        "average",
        "[paper] Eq. 21: z ← ½ z_old + ½ Σ_j α_ij z_j, of scores and embeddings",
    ),
    "refresh.repair": ("local", "[paper] the graph is repaired locally where embeddings drifted"),
    "refresh.delta": (0.05, "[unknown]: from which drift on"),
    "refresh.online_signals": (False, "[paper] nothing is taken from training steps"),
    "refresh_every": (
        "pass",
        "[paper] the coreset is updated dynamically during training; [unknown] how often",
    ),
    "refresh.warmup": (0.0, "[paper] says nothing of a warm-up"),
    "refresh.defer_first_measurement": (False, "[paper] nothing is deferred"),
    "weighted": (False, "[unknown]; rows of a coreset count alike"),
}


def _section(settings: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, (value, _) in settings.items():
        put(made, path, value)
    return made


#: One selection before training, from exact measurements of all rows.
ONCE: Mapping[str, Any] = {
    "refresh_every": "never",
    "refresh": {"warmup": 0.0, "anchors": "all", "propagate": "none", "repair": "none"},
}
#: A `coreset` section for each name; its `method` says which selector, {name: {its settings}}.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "grace": {"method": {"grace": {}}, "filters": OUR_FILTERS, "refresh": {"warmup": 0.0}},
    "grace-paper": _section(GRACE_PAPER),
    "brief": {"method": {"brief": {}}, **Brief().defaults},
    "gtp": {"method": {"gtp": {}}, **Gtp().defaults},
    "rds": {"method": {"rds": {}}, **ONCE},
    "loss_drop": {"method": {"loss_drop": {}}, **ONCE},
}


def known_methods() -> dict[str, type]:
    """Every name that `coreset.method` may have -> the selector's class."""
    return {
        **SELECTORS,
        **{name: SELECTORS[next(iter(preset["method"]))] for name, preset in PRESETS.items()},
    }
