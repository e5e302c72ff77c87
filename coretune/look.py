"""A look at the pool through a model under training, with a bar while it lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.rounds import PoolRows
from coretune.types import Array, Measure, Rows


@dataclass(frozen=True)
class Look:
    """Measures `signals` of `rows` under whatever weights `model` has at that moment.

    Constructing one refuses, by ValueError, what `measurer` refuses; it holds no projections between looks,
    which may be larger than an adapter.
    """

    model: Any
    rows: PoolRows
    signals: Sequence[str]
    settings: MeasureSettings
    tokenizer: Any
    target: PoolRows | None = None
    bar: bool = True

    def __post_init__(self) -> None:
        self._measurer(None)

    def __call__(self, rows: Rows) -> Mapping[str, Array]:
        with tqdm(total=len(rows), desc="measuring", unit="row", leave=False, disable=not self.bar) as bar:
            return self._measurer(bar.update)(rows)

    def _measurer(self, progress: Any) -> Measure:
        first = self.tokenizer.bos_token_id
        return measurer(
            self.model,
            self.rows,
            self.signals,
            self.settings,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=first if first is not None else self.tokenizer.eos_token_id,
            target=self.target,
            progress=progress,
        )
