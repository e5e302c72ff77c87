"""What measures a run's pool, and what it costs.

checkpoints of a warm-up run ─► first measurement, kept in RUN/_coretune/signals/ ┐
model, optimiser, learning rate of the moment ─► later ones                       ┴─► Measurement
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coretune.ledger import Ledger
from coretune.measure.bases import refuse_live
from coretune.measure.kept import Kept, anew
from coretune.measure.mismatched import Mismatched
from coretune.measure.moments import Moments
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import common_ending
from coretune.measure.snapshots import Snapshot, find_snapshots, read_snapshots
from coretune.neighbors.graph import check_k
from coretune.recording import selection_log
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.measurement import Measurement
from coretune.rounds.targets import TARGET_SIGNALS, Target, TargetExamples
from coretune.storing.store import BLOCK
from coretune.training.identity import model_parts, rows_fingerprint, snapshot_fingerprint, versions
from coretune.training.model_cost import ModelCost
from coretune.training.optimizer_check import refuse_optimizer
from coretune.training.processes import Processes
from coretune.training.refusals import refuse_virtual_tokens
from coretune.training.row_signals import FirstScan, RowSignals, StoredScan, first_token
from coretune.training.run_online import RunOnlineSignals
from coretune.training.run_schedule import batch_of
from coretune.training.target_warmups import TargetWarmups
from coretune.training.warmup_run import Setup, WarmupPlan, refuse_warmup_run, warmup_checkpoints
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    TARGET_LOSS,
    TARGET_SIMILARITY,
    TRAJECTORY,
    Rows,
    TrainersSeed,
    UsesCheckpoints,
)

log = logging.getLogger("coretune")


@dataclass(frozen=True)
class Live:
    """The state under training, asked at every measurement: a trainer makes its optimiser late.

    step       optimiser steps made
    rate       the learning rate
    optimizer  whose moments are read
    """

    step: Callable[[], int]
    rate: Callable[[], float]
    optimizer: Callable[[], Any]


class RunSignals:
    """Made once for a run (`mixin.py`), of what its trainer was made of.

    targets    trusted rows with their shares
    store      folder of the first measurements
    obstacle   why training steps do not show their rows' signals; None: they do

    settings     of the measurement, with autocast and seed
    duplicates   equal rows, where a measurement or a filter asks
    cost         what steps and measurements cost
    measurement  of the pool; None for a method that measures nothing
    online       of training steps, where the refresh asks for it

    ValueError for what this model, these arguments or this pool cannot give.
    """

    def __init__(
        self,
        config: CoresetConfig,
        setup: Setup,
        live: Live,
        processes: Processes,
        *,
        targets: Sequence[Target],
        store: Path,
        obstacle: str | None,
    ) -> None:
        self.config, self.setup, self.live, self.processes = config, setup, live, processes
        self.targets, rows = targets, setup.rows
        self.settings = _settings(config, setup.args)
        self._refuse()
        self.checkpoints: list[Path] = []  # of the warm-up run, or of the user's folder
        self.warmup: WarmupPlan | None = None
        if isinstance(config.selector, UsesCheckpoints) and config.has_warmup_run:
            steps = config.selector.checkpoints
            self.warmup = WarmupPlan.of(config, len(rows.length), batch_of(setup.args), steps)
        self.target_warmups: TargetWarmups | None = None
        if self._tunes:
            self.target_warmups = TargetWarmups.of(config.selector, targets, batch_of(setup.args))
        self.duplicates: ExactDuplicates | None = None
        if config.needs or config.filters:
            self.duplicates = ExactDuplicates.of(len(rows.length), rows.tokens, rows.labels)
        self.pairs = self._pairs()
        self.cost = self._cost(config.needs)
        self.online = self._online(obstacle) if config.needs else None
        self.measurement = self._measurement(store) if config.needs else None

    def prepare(self, ledger: Ledger, folder: Path) -> None:
        """Have the checkpoints that the first measurement goes through, if it does; before training begins.

        folder  of the warm-up run
        """
        selector = self.config.selector
        if self.warmup is not None:
            self.checkpoints = warmup_checkpoints(
                self.setup, self.warmup, folder, ledger, self.cost, self.processes
            )
        elif isinstance(selector, UsesCheckpoints):
            self.checkpoints = find_snapshots(selector.checkpoints_from, selector.checkpoints)
        if self.target_warmups is not None:
            self.target_warmups.prepare(self.setup, folder, ledger, self.cost, self.processes)

    @property
    def _tunes(self) -> bool:
        """Whether there are warm-ups on each target alone, which `target_loss` is measured by."""
        return TARGET_LOSS in self.config.needs and bool(self.targets)

    def _refuse(self) -> None:
        config, setup, preconditioner = self.config, self.setup, self.settings.preconditioner
        if config.refresh_every != "never":
            refuse_live(self.settings)
        # Whether an optimiser of this run is read, its own or its warm-up's, and not a folder's alone.
        own = not config.uses_checkpoints or config.has_warmup_run or config.refresh_every != "never"
        if preconditioner != "none" and own:
            made = setup.settings["optimizer_cls_and_kwargs"]
            refuse_optimizer(self.live.optimizer(), made, setup.args, setup.model, preconditioner)
        if config.uses_checkpoints or self._tunes:
            made_here = config.has_warmup_run or self._tunes
            refuse_warmup_run(setup.split, made_here and self.live.optimizer() is not None)
        if isinstance(config.selector, UsesCheckpoints) and not config.has_warmup_run:
            find_snapshots(config.selector.checkpoints_from, config.selector.checkpoints)  # to be missed now
        if config.needs:
            refuse_virtual_tokens(setup.model)
            if config.refresh.embedding in config.needs:  # then there is a graph
                check_k(config.refresh.k, len(setup.rows.length))

    def _pairs(self) -> Mismatched | None:
        noise, rows = self.config.noise, self.setup.rows
        if noise is None:
            return None
        count = min(noise.pairs, len(rows.length))
        pairs = Mismatched.of(rows, rows.length, count, self.config.seed)
        if not len(pairs) and self.processes.first:
            log.warning("%s", selection_log.no_pairs(rows.prompt_length))
        return pairs

    def _cost(self, signals: Sequence[str]) -> ModelCost:
        setup, targets = self.setup, [target.rows for target in self.targets]
        cost = ModelCost.of(
            setup.model,
            setup.rows,
            signals,
            self.settings,
            TargetExamples(tuple(self.targets)) if targets else None,
            bool(setup.args.gradient_checkpointing),
            targets,
            len(targets),
        )
        if EMPTY_PROMPT_LOSS not in signals:
            return cost
        return replace(cost, empty_prompt=len(common_ending(setup.rows, first_token(setup.tokenizer))))

    def _online(self, obstacle: str | None) -> RunOnlineSignals | None:
        """Of training steps, where asked for; where "auto" would and cannot, the log says why."""
        refresh, needs = self.config.refresh, self.config.needs
        if refresh.online_signals == "auto":
            again = self.config.refresh_every != "never"
            if not (again and refresh.may_use_online(needs)):
                return None
            if obstacle and self.processes.first:
                log.warning("online signals are off, rows just trained on are measured again: %s", obstacle)
            if obstacle:
                return None
        elif not refresh.online_signals:
            return None
        shown = [name for name in needs if name != EMPTY_PROMPT_LOSS]
        return RunOnlineSignals(self.setup.model, shown, self.settings, self.processes)

    @property
    def _first_signals(self) -> tuple[str, ...]:
        """Those of the first measurement: where rows are chosen for a target, also how near they are to each
        of its examples, which the record shows."""
        more = (TARGET_SIMILARITY,) if self.targets and TARGET_SIGNALS & set(self.config.needs) else ()
        return tuple(dict.fromkeys((*self.config.needs, *more)))

    def _measurement(self, store: Path) -> Measurement:
        cheap, needs, first = self.config.cheap_needs, self.config.needs, self._first_signals
        if not self.config.narrows_at:
            return self._stage("measurement", first, needs, store)
        whole = self._stage("measurement", cheap, cheap, store)
        others = [tuple(name for name in names if name not in cheap) for names in (first, needs)]
        if not any(others):
            return whole
        rest = self._stage("measurement of some", others[0], others[1], store, some=True)
        assert whole.first is not None
        return replace(whole, rest=rest, first=replace(whole.first, rest=rest.first))

    def _stage(
        self, name: str, of_first: Sequence[str], of_later: Sequence[str], store: Path, some: bool = False
    ) -> Measurement:
        """What measures these signals, the first time those `of_first`; some: not of all rows. References are
        those of all signals."""
        processes, kept, length = self.processes, Kept(self.live.step), self.setup.rows.length
        duplicates, cost = self.duplicates, self._cost(of_later)
        assert duplicates is not None
        now = replace(self._row_signals(), once=kept)
        later = replace(now, signals=of_later)
        later.check(tried=not self.setup.split)
        measure = processes.divided(name, later, length)
        if not some:
            measure = duplicates.sharing(measure)

        def flops(rows: Rows) -> float:
            """Without those of references that an earlier measurement of this refresh has made."""
            return cost.measurement(rows) - (cost.references if kept.at_hand else 0.0)

        return Measurement(
            measure,
            flops,
            processes.everywhere(f"references, {name}", now.references),
            None if some or self.online is None else self.online.taken,
            None if some else duplicates,
            self._first_stage(name, of_first, store, some),
            self._pairs_flops,
        )

    def _first_stage(self, name: str, signals: Sequence[str], store: Path, some: bool) -> Measurement:
        """Of the first measurement, block by block; through the checkpoints of a warm-up if there is one."""
        processes, selector, cost = self.processes, self.config.selector, self._cost(signals)
        assert self.duplicates is not None
        in_block = self.duplicates.within(BLOCK)
        compared = replace(self._row_signals(), signals=self._first_signals, snapshots=self._snapshots)
        scan = FirstScan(replace(compared, signals=signals))
        measure = processes.divided(f"first {name}", scan, self.setup.rows.length)
        if not some:
            measure = in_block.sharing(measure)
        close = processes.everywhere(f"first {name} is over", scan.close)
        passes = selector.checkpoints if isinstance(selector, UsesCheckpoints) else 1
        return Measurement(
            StoredScan(scan, measure, close, store, self.parts),
            lambda rows: cost.measurement(rows, passes),
            processes.everywhere(f"first references, {name}", compared.references),
            duplicates=None if some else in_block,
            reference_flops=self._pairs_flops,
        )

    @property
    def _pairs_flops(self) -> float:
        return 0.0 if self.pairs is None else self.cost.pairs(len(self.pairs))

    def _row_signals(self) -> RowSignals:
        """Under the weights of now."""
        setup = self.setup
        return RowSignals(
            setup.model,
            setup.rows,
            self.config.needs,
            self.settings,
            setup.tokenizer,
            self._now,
            self.targets,
            not setup.args.disable_tqdm and self.processes.first,
            anew,
            self.pairs,
            self._tuned,
        )

    def _tuned(self) -> Sequence[Snapshot]:
        return () if self.target_warmups is None else self.target_warmups.snapshots(self.setup.model)

    def _snapshots(self) -> Sequence[Snapshot]:
        """What the first measurement goes through."""
        if not self.config.uses_checkpoints:
            return self._now()
        moments = self.settings.preconditioner != "none"
        return read_snapshots(self.checkpoints, self.setup.model, with_moments=moments)

    def _now(self) -> Sequence[Snapshot]:
        """The state under training: its weights, and what of its rate and moments the signals depend on."""
        rate = self.live.rate() if TRAJECTORY in self.config.needs else 1.0
        moments = None
        if self.settings.preconditioner != "none":
            moments = Moments.of(self.live.optimizer(), self.setup.model)
        return [Snapshot("now", {}, rate, moments)]

    def parts(self, snapshots: Sequence[Snapshot]) -> Mapping[str, str]:
        """What decides the signals of a first measurement beside its settings."""
        setup = self.setup
        return {
            **model_parts(setup.model, setup.tokenizer),
            **versions(),
            "rows": rows_fingerprint(setup.rows),
            "targets": " ".join(rows_fingerprint(target.rows) for target in self.targets) or "none",
            "snapshots": " ".join(map(snapshot_fingerprint, [*snapshots, *self._tuned()])),
        }


def _settings(config: CoresetConfig, args: Any) -> MeasureSettings:
    """`coreset.signals` with the run's precision, and its seed where none was given."""
    given, autocast = config.signals, "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    seed = config.seed if isinstance(given.seed, TrainersSeed) else given.seed
    return replace(given, autocast=autocast, seed=seed)
