"""Rows measured by a model under training, or through snapshots of a run, with a bar.

RowSignals  what the weights of that moment, or of snapshots, say of some rows
StoredScan  the same of all rows, kept on disk block by block: a scan that was cut goes on, one that is
            finished is not made again
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coretune.escaping import first_line
from coretune.ledger import GRADIENT_SIGNALS
from coretune.measure.bases import SpecialTokens
from coretune.measure.batches import TokenRows
from coretune.measure.kept import Kept, Once, anew
from coretune.measure.mismatched import Mismatched
from coretune.measure.parameters import unreadable
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.measure.snapshots import Snapshot
from coretune.measure.trajectory import passes_of, references, snapshot_measurer
from coretune.measure.tuned import tuned_measurer
from coretune.progress import progress
from coretune.rounds.sampler import PoolRows
from coretune.rounds.targets import TARGET_SIGNALS, Target, TargetExamples
from coretune.storing.fingerprint import checksum, fingerprint_of_folder, store_folder
from coretune.storing.manifest import MANIFEST, Manifest, array_path
from coretune.storing.store import BLOCK, Store, fill
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    MATCHED,
    MISMATCHED,
    PAIR_TOKENS,
    SHARE,
    TARGET_LOSS,
    TARGET_OF,
    TARGET_SIMILARITY,
    TRAJECTORY,
    UNPROMPTED,
    Array,
    Measure,
    Rows,
)

log = logging.getLogger("coretune")
ONE_ROW = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class RowSignals:
    """Measures `signals` of `rows` under the snapshots of that moment.

    snapshots  what is measured through (see `snapshot_measurer`): those of a run, or the live state alone
    targets    trusted rows, with shares of the budget
    tuned      a snapshot for each target: the model after a warm-up on it alone, for `target_loss`
    once       when references are measured (see `signals.measurer`)
    pairs      of a prompt and another row's response: their loss is among the references, and that of
               the same responses after their own prompts

    It holds no projections between measurements, which may be larger than an adapter.
    """

    model: Any
    rows: PoolRows
    signals: Sequence[str]
    settings: MeasureSettings
    tokenizer: Any
    snapshots: Callable[[], Sequence[Snapshot]]
    targets: Sequence[Target] = ()
    bar: bool = True
    once: Once = anew
    pairs: Mismatched | None = None
    tuned: Callable[[], Sequence[Snapshot]] = tuple

    @property
    def examples(self) -> TargetExamples | None:
        return TargetExamples(tuple(self.targets)) if self.targets else None

    def check(self, tried: bool = True) -> None:
        """ValueError for what no snapshot could be measured for: signals, layers, settings, targets.

        tried  whether a row is measured: what a model does behind its head, and how adapters call their
               layers, shows only then
        """
        if TARGET_LOSS in self.signals and not self.targets:
            raise ValueError(f"{TARGET_LOSS} needs target examples and none are given; set target_data")
        bare = replace(self, settings=replace(self.settings, preconditioner="none"))
        bare.measurer([Snapshot("none", {}, 1.0)], None)
        if not tried:
            return
        try:
            bare._try_one_row()
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"the model fails on a row ({type(error).__name__}: {first_line(error)}): try other layers "
                "for the adapter, or see whether the stock trainer takes it"
            ) from error

    def _try_one_row(self) -> None:
        if not (GRADIENT_SIGNALS | {TRAJECTORY}) & set(self.signals):
            self._measured(self.rows, ONE_ROW, ["loss"])
            return
        try:
            self._measured(self.rows, ONE_ROW, ["gradient_norm"])
        except ValueError as error:
            raise unreadable(self.model, f"no gradient of a row can be read: {error}") from None

    def __call__(self, rows: Rows) -> Mapping[str, Array]:
        snapshots = self.snapshots()
        passes = passes_of(self.signals, snapshots)
        with self.shown(passes * len(rows)) as bar:
            return self.measurer(snapshots, bar.update)(rows)

    def references(self) -> Mapping[str, Array]:
        """For `Pool.references`: what losses are compared with; where there are targets, trajectories, which
        target each example is of, the shares of the budget, and how similar the examples are to each other.
        """
        found = {} if self.pairs is None else self._compared(self.pairs)
        if self.examples is not None and TARGET_SIGNALS & set(self.signals):
            found |= {TARGET_OF: self.examples.of, SHARE: self.examples.share.astype(np.float32)}
        if self.examples is not None and TARGET_SIMILARITY in self.signals:
            everyone = np.arange(len(self.examples.length))
            unit = self._measured(self.examples, everyone, ["weighted_embedding"])["weighted_embedding"]
            found[TARGET_SIMILARITY] = unit @ unit.T
        if TRAJECTORY not in self.signals or not self.targets:
            return found
        targets, shares = [t.rows for t in self.targets], [t.share for t in self.targets]
        given = self.model, self.rows, targets, shares, self.settings, self.snapshots()
        return {**found, **references(*given, **self._special)}

    def _compared(self, pairs: Mismatched) -> dict[str, Array]:
        """(m,) each: responses after other prompts, after their own and, where it is a signal, after an empty
        one, where all are finite; and their tokens."""
        other = self._measured(pairs, np.arange(len(pairs)), ["loss"])["loss"]
        names = {"loss": MATCHED, EMPTY_PROMPT_LOSS: UNPROMPTED}
        asked = [name for name in names if name == "loss" or name in self.signals]
        own = self._measured(self.rows, pairs.responses, asked)
        found = {MISMATCHED: other, **{names[name]: own[name] for name in asked}}
        tokens = self.rows.response_length[pairs.responses]
        good = np.isfinite(list(found.values())).all(axis=0)
        return {name: value[good] for name, value in {**found, PAIR_TOKENS: tokens}.items()}

    def _measured(self, rows: TokenRows, which: Rows, signals: Sequence[str]) -> Mapping[str, Array]:
        """Signal -> (m, …) float32 under the weights of that moment."""
        return measurer(self.model, rows, signals, self.settings, **self._special)(which)

    @property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(
            pad_token_id=self.tokenizer.pad_token_id, bos_token_id=first_token(self.tokenizer)
        )

    def measurer(self, snapshots: Sequence[Snapshot], progress: Callable[[int], None] | None) -> Measure:
        plain = snapshot_measurer(
            self.model,
            self.rows,
            [name for name in self.signals if name != TARGET_LOSS],
            self.settings,
            snapshots,
            target=self.examples,
            progress=progress,
            once=self.once,
            **self._special,
        )
        if TARGET_LOSS not in self.signals:
            return plain
        tuned = tuned_measurer(self.model, self.rows, self.settings, self.tuned, **self._special)
        return lambda rows: {**plain(rows), **tuned(rows)}

    def shown(self, total: int) -> Any:
        return progress(total, "measuring", shown=self.bar)


def first_token(tokenizer: Any) -> int:
    """What a response without a prompt follows: the bos token, or where there is none the eos token."""
    first: int | None = tokenizer.bos_token_id
    return int(first if first is not None else tokenizer.eos_token_id)


class FirstScan:
    """A scan of all rows that keeps snapshots, projections, references from block to block, until `close`."""

    def __init__(self, signals: RowSignals) -> None:
        self.signals = signals
        self.snapshots: Sequence[Snapshot] = ()
        self._measure: Measure | None = None

    def __call__(self, rows: Rows) -> Mapping[str, Array]:
        self.open()
        assert self._measure is not None
        return self._measure(rows)

    def open(self) -> None:
        if self._measure is None:
            self.snapshots = self.signals.snapshots()
            signals = replace(self.signals, once=Kept(lambda: 0))  # nothing is trained before it is closed
            self._measure = signals.measurer(self.snapshots, None)

    def close(self) -> None:
        self.snapshots, self._measure = (), None


@dataclass(frozen=True)
class StoredScan:
    """A scan of all rows, or of all that a filter left, kept in a store below `folder`, of which its arrays
    are private memory maps: line i of them is of the i-th row asked for.

    scan     of rows, block after block
    measure  the same with its rows dealt out to all processes
    close    has every process let go of it
    parts    what decides the signals beside the settings: model, snapshots, tokenizer, rows, targets

    [choice] Only a run's first measurement is kept: it is the largest, the only one that other runs can
    share, and later ones are of weights that no other run will have. float32: numpy has no bfloat16, and
    gradients leave the range of float16.
    """

    scan: FirstScan
    measure: Measure
    close: Callable[[], object]
    folder: Path
    parts: Callable[[Sequence[Snapshot]], Mapping[str, str]]

    def __call__(self, rows: Rows) -> Mapping[str, Array]:
        self.scan.open()
        signals = self.scan.signals
        parts = {**self.parts(self.scan.snapshots), **_settings_parts(signals), **self._some(rows)}
        folder = store_folder(self.folder, parts)
        with signals.shown(len(rows)) as bar:

            def measure(places: Rows) -> Mapping[str, Array]:
                found = self.measure(rows[places])
                bar.update(len(places))
                return found

            try:
                self._fill(folder, parts, measure, len(rows), bar)
            finally:
                self.close()
        return {name: np.load(array_path(folder, name), mmap_mode="c") for name in signals.signals}

    def _some(self, rows: Rows) -> dict[str, str]:
        """Which of the rows are scanned, where it is not all of them."""
        if np.array_equal(rows, np.arange(len(self.scan.signals.rows.length))):
            return {}
        return {"looked at": checksum(np.asarray(rows, "<i8").tobytes())}

    def _fill(self, folder: Path, parts: Mapping[str, str], measure: Measure, n: int, bar: Any) -> None:
        layout, begun = _layout(folder, measure, n)
        with Store.open(folder, parts, rows=n, signals=layout, block=BLOCK) as store:
            missing = store.missing()
            known = n - sum(len(store.rows_of(block)) for block in missing)
            if known:
                log.warning("%d of %d rows were measured before, and are read from %s", known, n, folder)
                bar.update(known)
            if begun is not None and 0 in missing:
                store.write(0, begun)
            fill(store, measure)


def _layout(
    folder: Path, measure: Measure, n: int
) -> tuple[dict[str, tuple[tuple[int, ...], str]], Mapping[str, Array] | None]:
    """Each signal's shape of a row and dtype, and the first block's values where they had to be measured."""
    if (folder / MANIFEST).is_file():
        return dict(Manifest.read(folder).signals), None
    first = measure(np.arange(min(n, BLOCK), dtype=np.int64))
    return {name: (value.shape[1:], value.dtype.str) for name, value in first.items()}, first


def _settings_parts(signals: RowSignals) -> dict[str, str]:
    """What settings, device and code add to the fingerprint."""
    settings = {**asdict(signals.settings), "signals": sorted(signals.signals), "block": BLOCK}
    return {
        "settings": json.dumps(settings, sort_keys=True),
        "device": signals.model.device.type,
        "code": fingerprint_of_folder(Path(__file__).parent.parent / "measure", "*.py"),
    }
