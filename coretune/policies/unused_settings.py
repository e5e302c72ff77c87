"""Settings that a run never reads, given all its others: a line names each that is set."""

from __future__ import annotations

from collections.abc import Iterator

from coretune.engines.covering import WITHIN_LIMITS
from coretune.filters.cooldown import Cooldown
from coretune.ledger import GRADIENT_SIGNALS
from coretune.measure.settings import SEEDED
from coretune.policies.reuse import noise_sought
from coretune.rounds.coreset_config import CoresetConfig
from coretune.select import SELECTORS
from coretune.select.brief import Brief
from coretune.select.craig import Craig
from coretune.select.gradmatch import GradMatch
from coretune.select.gtp import Gtp

#: Signals that need a gradient of the blocks, and those of them that are its projections.
GRADIENTS = GRADIENT_SIGNALS | {"trajectory"}
PROJECTED = GRADIENTS - {"gradient_norm"}

#: Methods that give all rows the same weight; what is made from one of them may weigh its own.
UNWEIGHTED = frozenset(SELECTORS.values()) - {Brief, Craig, GradMatch, Gtp}


def unused_settings(config: CoresetConfig) -> dict[str, set[str]]:
    """Room of the `coreset` section -> keys of it, "" beside `method`; of the method its own, as its
    `unused_settings` says."""
    selector = config.selector
    return {
        "": {"weighted"} if type(selector) in UNWEIGHTED else set(),
        "method": {name.rstrip("_") for name in getattr(selector, "unused_settings", ())},
        "refresh": {key for keys, read in _of_refresh(config) if not read for key in keys.split()},
        "signals": {key for key, read in _of_signals(config) if not read},
        "solver": {key for key, read in _of_solver(config) if not read},
    }


def unused_filters(config: CoresetConfig) -> list[str]:
    """Filters that have nothing to judge by: rows cool down once a coreset, or a warm-up, trained on them."""
    trained_before = config.refresh_every != "never" or (
        config.needs and config.warmup_share and not config.uses_checkpoints
    )
    return [] if trained_before else [each.name for each in config.filters if isinstance(each, Cooldown)]


def _of_refresh(config: CoresetConfig) -> Iterator[tuple[str, bool]]:
    refresh, measures = config.refresh, bool(config.needs)
    again = measures and config.refresh_every != "never"
    along = measures and refresh.follows_graph
    candidates, priority = refresh.anchors == "candidates", refresh.anchors == "priority"
    yield "anchors repair", again
    yield "propagate", again and refresh.anchors != "all"
    yield "staleness_factor", again and candidates
    yield "anchor_share", again and (priority or (candidates and config.noise is not None))
    yield "beta", again and priority
    yield "delta", again and refresh.repair == "local"
    yield "k embedding", along or refresh.embedding in config.needs
    yield "scores", along
    yield "priority_score", measures and (config.audit_every is not None or (again and priority))
    yield "online_signals audit_every", again
    yield "warmup", measures and (config.has_warmup_run or not config.uses_checkpoints)
    yield "defer_first_measurement", again and noise_sought(config) is not None


def _of_signals(config: CoresetConfig) -> Iterator[tuple[str, bool]]:
    settings, needs = config.signals, set(config.needs)
    projected, head = bool(needs & PROJECTED), "head_gradient" in needs
    bare = settings.preconditioner == "none"  # else gradients are built whole: no side of them is cut
    cut, drawn = bare and settings.basis != "sjlt", settings.basis in SEEDED
    yield "last_blocks", bool(needs & GRADIENTS)
    yield "parameters", bool(needs & GRADIENTS)
    yield "projection_dim", projected or head
    yield "factor_dim", (projected and cut) or head
    yield "basis", (projected and drawn and bare) or ("trajectory" in needs and not drawn)
    yield "preconditioner", projected
    yield "batch_tokens", bool(needs)


def _of_solver(config: CoresetConfig) -> Iterator[tuple[str, bool]]:
    selector = config.selector
    if isinstance(selector, Brief):
        yield "memory_limit", True
        yield "deadline", selector.lower == "auto"
        return
    pairs = type(selector) in WITHIN_LIMITS and getattr(selector, "similarity", "dense") == "dense"
    limited = pairs and config.engine == "local"
    yield "memory_limit", limited
    yield "deadline", limited and config.quota is None
