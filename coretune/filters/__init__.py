"""Pool -> which rows may be chosen: every filter by the name it has in a configuration, for every method.

duplicates  of equal rows one
noise       rows whose response seems wrong
cooldown    rows that were trained on not long ago

chain.py applies several, one after the other; filters are ours, not a published method's.
"""

from __future__ import annotations

from coretune.filters.cooldown import Cooldown
from coretune.filters.duplicates import Duplicates
from coretune.filters.noise import Noise

FILTERS: dict[str, type[Duplicates | Noise | Cooldown]] = {
    kind.name: kind for kind in (Duplicates, Noise, Cooldown)
}


def says(name: str) -> str:
    """Why the filter of that name takes a row out, in words; "" for one that is not the library's."""
    return FILTERS[name].says if name in FILTERS else ""
