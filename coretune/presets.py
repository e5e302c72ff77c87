"""A name in `coreset.method` -> a method and its settings. What is given beside it counts before them.

grace        what the evidence chose: GRACE's coverage with our filters (LOG.md)
grace-paper  GRACE as it was published, and nothing else: every setting with what the paper says of it
brief, gtp   as their papers have them (`select/brief.py`, `gtp.py`): one selection, after a warm-up run
rds, loss_drop   as their papers have them: one selection, by the model as it is before training

Every other method is bare: without filters, and with its own defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coretune.select.brief import Brief
from coretune.select.gtp import Gtp

#: What we add to GRACE's objective: which rows may be chosen. Any method takes the same list.
OUR_FILTERS: tuple[Any, ...] = ("duplicates", "noise", {"cooldown": {"by": "loss"}})

#: Tang, Li, Chen, "GRACE: A Dynamic Coreset Selection Framework for Large Language Model Optimization",
#: arXiv:2604.11810, 2026: setting -> value, and what the paper says. [paper] stated there; [unknown] not
#: stated in what is known of it, then the value is ours. No official code is public.
GRACE_PAPER: Mapping[str, tuple[Any, str]] = {
    "filters": (
        [],
        "[paper] knows none: no row is kept out as noise, as a duplicate, or because it was chosen",
    ),
    "lambda": (
        0.5,
        "[paper] combines representation diversity with gradient-based importance; [unknown] how much",
    ),
    "importance": (
        "gradient_norm",
        "[paper] gradient-based importance; [unknown] which norm, of which layers",
    ),
    "importance_term": ("mean", "[unknown]; here both terms range over [0, 1]"),
    "demand": ("equal", "[paper] knows no weights of the rows that are covered"),
    "similarity": ("graph", "[paper] graph-guided: similarities along the k-NN graph; [unknown] outside it"),
    "embedding": ("response_embedding", "[paper] the model's representation of an example; [unknown] which"),
    "k": (10, "[paper] a k-NN graph; [unknown] k"),
    "anchors": (
        "priority",
        "[paper] recompute priority of staleness and of the discrepancy with the neighbours",
    ),
    "anchor_share": (0.05, "[paper] a bounded number is measured again; [unknown] how many"),
    "beta": (0.5, "[paper] combines both; [unknown] how much of each"),
    "priority_score": ("gradient_norm", "[paper] the discrepancy of its importance with its neighbourhood"),
    "count_alike": (False, "[paper] knows no such factor"),
    "spread_anchors": (False, "[paper] says nothing of damping the neighbours of an anchor"),
    "scores": ([], "[paper] scores and embeddings alone are kept"),
    "propagate": ("average", "[paper] Eq. 21: z ← ½ z_old + ½ Σ_j α_ij z_j, of scores and embeddings"),
    "repair": ("local", "[paper] the graph is repaired locally where embeddings drifted"),
    "delta": (0.05, "[unknown]: from which drift on"),
    "harvest": (False, "[paper] nothing is taken from training steps"),
    "refresh_every": (
        "pass",
        "[paper] the coreset is updated dynamically during training; [unknown] how often",
    ),
    "warmup": (0.0, "[paper] says nothing of a warm-up"),
    "wait": (False, "[paper] nothing is deferred"),
    "weighted": (False, "[unknown]; rows of a coreset count alike"),
}

#: One selection before training, from exact measurements of all rows.
ONCE: Mapping[str, Any] = {
    "warmup": 0.0,
    "refresh_every": "never",
    "anchors": "all",
    "propagate": "none",
    "repair": "none",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "grace": {"method": "grace", "filters": OUR_FILTERS, "warmup": 0.0},
    "grace-paper": {"method": "grace", **{name: value for name, (value, _) in GRACE_PAPER.items()}},
    "brief": {"method": "brief", **Brief().defaults},
    "gtp": {"method": "gtp", **Gtp().defaults},
    "rds": {"method": "rds", **ONCE},
    "loss_drop": {"method": "loss_drop", **ONCE},
}


def expanded(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `coreset` section with the settings of the preset that its method names, if it names one."""
    method = section.get("method")
    preset = PRESETS.get(method) if isinstance(method, str) else None
    return section if preset is None else {**preset, **section, "method": preset["method"]}
