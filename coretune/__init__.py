"""Fine-tune a language model on a small, changing coreset of its instruction data.

Every public name is imported when it is first used: `import coretune` loads neither numpy nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from coretune.coreset_section import coreset
    from coretune.data.corpus import Corpus
    from coretune.ledger import Ledger
    from coretune.measure.settings import MeasureSettings
    from coretune.rounds.coreset_config import CoresetConfig
    from coretune.rounds.refresh_settings import AnchorRefresh
    from coretune.select.grace import Grace
    from coretune.training.train import CoresetSFTTrainer, CoresetTrainer
    from coretune.types import Budget, Coreset, Measure, NeighborGraph, Pool, RefreshPolicy, Rows, Selector

_MODULE_OF = {
    "AnchorRefresh": "coretune.rounds.refresh_settings",
    "Budget": "coretune.types",
    "Coreset": "coretune.types",
    "CoresetConfig": "coretune.rounds.coreset_config",
    "CoresetSFTTrainer": "coretune.training.train",
    "CoresetTrainer": "coretune.training.train",
    "Corpus": "coretune.data.corpus",
    "MeasureSettings": "coretune.measure.settings",
    "coreset": "coretune.coreset_section",
    "Grace": "coretune.select.grace",
    "Ledger": "coretune.ledger",
    "Measure": "coretune.types",
    "NeighborGraph": "coretune.types",
    "Pool": "coretune.types",
    "RefreshPolicy": "coretune.types",
    "Rows": "coretune.types",
    "Selector": "coretune.types",
}

__all__ = [
    "AnchorRefresh",
    "Budget",
    "Coreset",
    "CoresetConfig",
    "CoresetSFTTrainer",
    "CoresetTrainer",
    "Corpus",
    "Grace",
    "Ledger",
    "Measure",
    "MeasureSettings",
    "NeighborGraph",
    "Pool",
    "RefreshPolicy",
    "Rows",
    "Selector",
    "__version__",
    "coreset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"coretune has no {name!r}; it has {', '.join(sorted(_MODULE_OF))}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
