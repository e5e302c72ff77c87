"""How a trainer's selections see its pool: the first look through the teacher where there is one, and kept on
disk; later ones through the model under training.

    teacher (made or found) ─► snapshots ─► first look ─► RUN/_coretune/signals/ ┐
    model, optimiser, learning rate of the moment ─► later looks                 ┴─► Measurement (refresh.py)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coretune.measure.bases import refuse_live
from coretune.measure.kept import Kept, Once, anew
from coretune.measure.mismatched import Mismatched
from coretune.measure.moments import Moments
from coretune.measure.signals import common_ending
from coretune.measure.snapshots import Snapshot, find_snapshots, read_snapshots
from coretune.measure.trajectory import TRAJECTORY
from coretune.neighbors.graph import check_k
from coretune.recording import selection_log
from coretune.recording.run_files import SIGNALS, TEACHER
from coretune.rounds.exact_duplicates import ExactDuplicates
from coretune.rounds.measurement import Measurement
from coretune.rounds.sampler import EXAMPLE_ID
from coretune.rounds.targets import TARGET_SIGNALS, Target, TargetRows
from coretune.storing.store import BLOCK
from coretune.training.identity import model_parts, rows_fingerprint, snapshot_fingerprint, versions
from coretune.training.look import FirstLook, Look, StoredLook, first_token
from coretune.training.model_cost import ModelCost
from coretune.training.optimizer_check import refuse_optimizer
from coretune.training.refusals import refuse_first_fsdp, refuse_virtual_tokens
from coretune.training.run_harvest import RunHarvest
from coretune.training.target_lessons import TargetLessons
from coretune.training.teacher import Lesson, School, refuse_school, teach
from coretune.types import (
    EMPTY_PROMPT_LOSS,
    TARGET_LOSS,
    TARGET_SIMILARITY,
    Measure,
    Rows,
    Taught,
    TrainersSeed,
)

log = logging.getLogger("coretune")


class Sight:
    """Made once for a trainer (`mixin.py`), when its model and arguments are known.

    settings  of the measurement: `coreset.signals`, at the trainer's precision
    targets   trusted rows with their shares
    cost      what steps and looks of it cost
    measurement  of its pool; None for a method that measures nothing
    harvest   of its training steps, where the refresh asks for it

    ValueError for what this model, these arguments or this pool cannot give.
    """

    def __init__(
        self,
        trainer: Any,
        targets: Sequence[Target],
        signals_dir: str | Path | None,
    ) -> None:
        self.trainer, self.config, self.targets = trainer, trainer.coreset_config, targets
        autocast = "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else None
        settings = self.config.signals
        seed = self.config.seed if isinstance(settings.seed, TrainersSeed) else settings.seed
        self.settings = replace(settings, autocast=autocast, seed=seed)
        if self.config.refresh_every != "never":
            refuse_live(self.settings)
        if self.settings.preconditioner != "none" and self._reads_own_moments():
            refuse_optimizer(trainer, self.settings.preconditioner)
        self.folders: list[Path] = []  # the teacher's checkpoints
        self.collator, self.dataset = trainer.data_collator, trainer.train_dataset  # before ours are put on
        self.harvest: RunHarvest | None = None
        self.lesson = self._lesson()
        self.target_lessons = self._target_lessons()
        self.decoys = self._mismatched()
        self.twins = self._twins()
        self.cost = self._cost(self.config.needs)
        self.measurement = self._measurement(
            Path(signals_dir or Path(trainer.args.output_dir) / SIGNALS).expanduser()
        )

    def prepare(self) -> None:
        """Have the teacher's checkpoints, where the method looks through one. Before the training begins."""
        selector = self.config.selector
        if self.lesson is not None:
            folder = Path(self.trainer.args.output_dir) / TEACHER
            trainer = self.trainer
            self.folders = teach(
                self._school(), self.lesson, folder, trainer.ledger, self.cost, trainer.processes
            )
        elif isinstance(selector, Taught):
            self.folders = find_snapshots(selector.teacher, selector.checkpoints)
        if self.target_lessons is not None:
            trainer = self.trainer
            folder = Path(trainer.args.output_dir) / TEACHER
            self.target_lessons.teach(self._school(), folder, trainer.ledger, self.cost, trainer.processes)

    def _target_lessons(self) -> TargetLessons | None:
        """The warm-ups on each target alone, where `target_loss` is measured."""
        if TARGET_LOSS not in self.config.needs or not self.targets:
            return None
        refuse_school(self.trainer, teaching=True)
        args = self.trainer.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return TargetLessons.of(self.config.selector, self.targets, batch)

    @property
    def _first_signals(self) -> tuple[str, ...]:
        """Those of the first look: where rows are chosen for a target, also how near they are to each of its
        examples, which the record tells."""
        more = (TARGET_SIMILARITY,) if self.targets and TARGET_SIGNALS & set(self.config.needs) else ()
        return tuple(dict.fromkeys((*self.config.needs, *more)))

    def _reads_own_moments(self) -> bool:
        """Whether an optimiser of this run is read, its own or its teacher's, and not a folder's alone."""
        return not self.config.taught or self.config.teaching or self.config.refresh_every != "never"

    def _lesson(self) -> Lesson | None:
        selector, trainer = self.config.selector, self.trainer
        if not isinstance(selector, Taught):
            return None
        refuse_school(trainer, self.config.teaching)
        if not self.config.teaching:
            find_snapshots(selector.teacher, selector.checkpoints)  # to be missed now, not after a while
            return None
        args = trainer.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return Lesson.of(self.config, len(trainer.pool_rows.length), batch, selector.checkpoints)

    def _school(self) -> School:
        trainer = self.trainer
        settings = {
            "data_collator": self.collator,
            "compute_loss_func": trainer.compute_loss_func,
            "optimizer_cls_and_kwargs": trainer.optimizer_cls_and_kwargs,
        }
        return School(
            trainer.stock,
            trainer.model,
            trainer.args,
            self.dataset,
            trainer.pool_rows,
            trainer.processing_class,
            settings,
        )

    def _cost(self, signals: Sequence[str]) -> ModelCost:
        trainer, targets = self.trainer, [target.rows for target in self.targets]
        examples = TargetRows(tuple(self.targets)) if targets else None
        cost = ModelCost.of(
            trainer.model,
            trainer.pool_rows,
            signals,
            self.settings,
            examples,
            bool(trainer.args.gradient_checkpointing),
            targets,
            len(targets),
        )
        if EMPTY_PROMPT_LOSS not in signals:
            return cost
        ending = common_ending(trainer.pool_rows, first_token(trainer.processing_class))
        return replace(cost, empty_prompt=len(ending))

    def _measurement(self, signals_dir: Path) -> Measurement | None:
        if not self.config.needs:
            return None
        refuse_virtual_tokens(self.trainer.model)
        if self.trainer.is_fsdp_enabled:
            refuse_first_fsdp(self.trainer.accelerator.state.fsdp_plugin.fsdp_version)
        if self.config.refresh.follows_graph:
            check_k(self.config.refresh.k, len(self.trainer.pool_rows.length))
        cheap = set(self.config.cheap_needs)
        if not self.config.narrows_at:
            return self._stage("look", self._first_signals, self.config.needs, signals_dir)
        whole = self._stage("look", self.config.cheap_needs, self.config.cheap_needs, signals_dir)
        others = [
            tuple(name for name in signals if name not in cheap)
            for signals in (self._first_signals, self.config.needs)
        ]
        if not any(others):
            return whole
        rest = self._stage("look at some", others[0], others[1], signals_dir, some=True)
        assert whole.first is not None
        return replace(whole, rest=rest, first=replace(whole.first, rest=rest.first))

    def _stage(
        self,
        name: str,
        of_first: Sequence[str],
        signals: Sequence[str],
        signals_dir: Path,
        some: bool = False,
    ) -> Measurement:
        """What measures these signals, at the first look those `of_first`; some: not of all rows. References
        are those of all signals."""
        kept = Kept(lambda: int(self.trainer.state.global_step))
        later = replace(self._look(self._now, kept), signals=signals)
        first = FirstLook(replace(self._look(self._first, anew), signals=of_first))
        later.check()
        twins = self.twins
        assert twins is not None
        in_block = twins.within(BLOCK)  # the first look goes, and is kept, block by block
        first_door, door = self._door(f"first {name}", first), self._door(name, later)
        if not some:
            first_door, door = in_block.sharing(first_door), twins.sharing(door)
        close = self._everywhere(f"first {name} is over", first.close)
        stored = StoredLook(first, first_door, close, signals_dir, self._parts)
        cost, first_cost, selector = self._cost(signals), self._cost(of_first), self.config.selector
        snapshots = selector.checkpoints if isinstance(selector, Taught) else 1
        compared = replace(self._look(self._first, anew), signals=self._first_signals)
        begin = Measurement(
            stored,
            lambda rows: first_cost.measurement(rows, snapshots),
            self._everywhere(f"first references, {name}", compared.references),
            duplicates=None if some else in_block,
            reference_flops=self._decoy_flops(),
        )
        references = self._everywhere(f"references, {name}", self._look(self._now, kept).references)

        def later_flops(rows: Rows) -> float:
            """Of a look, without those of references that an earlier one of this refresh has measured."""
            return cost.measurement(rows) - (cost.references if kept.at_hand else 0.0)

        online, duplicates = (None, None) if some else (self._harvested(), twins)
        return Measurement(door, later_flops, references, online, duplicates, begin, self._decoy_flops())

    def _mismatched(self) -> Mismatched | None:
        noise, trainer, rows = self.config.noise, self.trainer, self.trainer.pool_rows
        if noise is None:
            return None
        pairs = Mismatched.of(rows, rows.length, noise.pairs, self.config.seed)
        if not len(pairs) and trainer.is_world_process_zero():
            log.warning("%s", selection_log.no_pairs(rows.prompt_length))
        return pairs

    def _twins(self) -> ExactDuplicates | None:
        """Which rows are equal, where a measurement or a filter asks."""
        if not self.config.needs and not self.config.filters:
            return None
        rows = self.trainer.pool_rows
        return ExactDuplicates.of(len(rows.length), rows.tokens, rows.labels)

    def _decoy_flops(self) -> float:
        return 0.0 if self.decoys is None else self.cost.pairs(len(self.decoys))

    def _harvested(self) -> Callable[[], Any] | None:
        """What a refresh asks the training steps for; None where nothing is harvested."""
        if not self._harvests():
            return None
        trainer = self.trainer
        shown = [name for name in self.config.needs if name != EMPTY_PROMPT_LOSS]
        self.harvest = RunHarvest(trainer.model, shown, self.settings, trainer.processes)
        return self.harvest.taken

    def _harvests(self) -> bool:
        """Whether training steps are; where "auto" would and cannot, the log says why."""
        refresh, trainer = self.config.refresh, self.trainer
        if refresh.harvest != "auto":
            return refresh.harvest
        again = self.config.refresh_every not in ("never", "adaptive")
        if not (again and refresh.may_harvest(self.config.needs)):
            return False
        why = trainer.harvest_obstacle(trainer.args, trainer.compute_loss_func)
        if not trainer.tells_rows:
            why = f"train_dataset has no column {EXAMPLE_ID} with each row's place among `rows`"
        if why and trainer.is_world_process_zero():
            log.warning("rows just trained on are looked at again: %s", why)
        return why is None

    def _door(self, name: str, look: Measure) -> Measure:
        """The look with its rows dealt out to all processes."""
        return self.trainer.processes.door(name, look, self.trainer.pool_rows.length)

    def _everywhere(self, name: str, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` done by every process; what it gives on the first."""
        self.trainer.processes.answers(name, work)
        return lambda: self.trainer.processes.call(name)[0]

    def _look(self, snapshots: Any, once: Once) -> Look:
        trainer = self.trainer
        bar = not trainer.args.disable_tqdm and trainer.is_world_process_zero()
        return Look(
            trainer.model,
            trainer.pool_rows,
            self.config.needs,
            self.settings,
            trainer.processing_class,
            snapshots,
            self.targets,
            bar,
            once,
            self.decoys,
            self._tuned,
        )

    def _tuned(self) -> Sequence[Snapshot]:
        return () if self.target_lessons is None else self.target_lessons.snapshots(self.trainer.model)

    def _first(self) -> Sequence[Snapshot]:
        if not self.config.taught:
            return self._now()
        moments = self.settings.preconditioner != "none"
        return read_snapshots(self.folders, self.trainer.model, with_moments=moments)

    def _now(self) -> Sequence[Snapshot]:
        """The state under training: its weights, and what of its rate and moments the signals depend on."""
        trainer = self.trainer
        rate = trainer.lr_scheduler.get_last_lr()[0] if TRAJECTORY in self.config.needs else 1.0
        moments = None
        if self.settings.preconditioner != "none":
            moments = Moments.of(trainer.optimizer, trainer.model)
        return [Snapshot("now", {}, rate, moments)]

    def _parts(self, snapshots: Sequence[Snapshot]) -> Mapping[str, str]:
        trainer = self.trainer
        return {
            **model_parts(trainer.model, trainer.processing_class),
            **versions(),
            "rows": rows_fingerprint(trainer.pool_rows),
            "targets": " ".join(rows_fingerprint(target.rows) for target in self.targets) or "none",
            "snapshots": " ".join(map(snapshot_fingerprint, [*snapshots, *self._tuned()])),
        }
