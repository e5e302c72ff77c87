"""Pool -> which rows may be chosen: every filter by the name it has in a configuration, for every method.

duplicates  of equal rows one
noise       rows whose prompt does not make their response likelier
neighbours  rows whose loss is far above that of rows that ask alike
cooldown    rows that were trained on not long ago
target_rows rows that equal an example of the target
narrow      all but a few times the budget, by a cheap signal: then the method's own are measured of few

chain.py applies several, one after the other; filters are ours, not a published method's.
"""

from __future__ import annotations

from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.narrow import Narrow
from coretune.filters.neighbours import Neighbours
from coretune.filters.noise import Noise
from coretune.filters.target_rows import TargetRows

#: Filters that tell noise, for which pairs of a prompt and another row's response are measured.
DetectsNoise = Noise | Neighbours

FILTERS: dict[str, type[Duplicates | Noise | Neighbours | Cooldown | TargetRows | Narrow]] = {
    kind.name: kind for kind in (Duplicates, Noise, Neighbours, Cooldown, TargetRows, Narrow)
}


def says(name: str) -> str:
    """Why the filter of that name takes a row out, in words; "" for one that is not the library's."""
    return FILTERS[name].says if name in FILTERS else ""
