"""Rounds laid over a stock trainer: what CoresetTrainer and CoresetSFTTrainer have in common.

    Trainer epoch begins ─► due? ─► measure, select (refresh.py) ─► the sampler hands out this round's rows

One round is one Trainer epoch: a sampler swapped in on_epoch_begin takes effect in that very epoch, while
rows swapped inside one would meet batches that are prefetched already. Every round is equally long, because
the Trainer reads the sampler's length once.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import Trainer, set_seed

from coretune import refresh
from coretune.ledger import Ledger
from coretune.progress import loops_shown
from coretune.recording.run_files import LEDGER, SIGNALS, WARMUP_RUN
from coretune.rounds import state, transitions
from coretune.rounds.coreset_config import CoresetConfig, seeded
from coretune.rounds.order import Order, round_order
from coretune.rounds.sampler import (
    EXAMPLE_ID,
    PackedRows,
    PoolRows,
    PreparedRows,
    RoundSampler,
    with_example_id,
    with_positions,
)
from coretune.rounds.state import State
from coretune.rounds.targets import Target, targets_of, without_examples
from coretune.training.booking import BookingTrainer
from coretune.training.callbacks import Rounds, make_readable
from coretune.training.card import section, write_section
from coretune.training.few_bits import keep_trainable
from coretune.training.finite import refuse_broken_loss, refuse_broken_weights
from coretune.training.first_pool import first_pool
from coretune.training.model_kind import refuse_other_models
from coretune.training.processes import Processes
from coretune.training.record_selection import record, warn_of_excluded
from coretune.training.refusals import (
    refuse_arguments,
    refuse_dataset,
    refuse_first_fsdp,
    refuse_frozen_model,
    refuse_measuring,
    refuse_parallelism,
    refuse_rows,
    refuse_steps,
    unnamed_rows,
)
from coretune.training.resume import Resumed, Resumption
from coretune.training.row_checks import refuse_strange, warn_of_dropped, with_response
from coretune.training.run_schedule import batch_of, schedule_of
from coretune.training.run_signals import Live, RunSignals
from coretune.training.saving import side_product
from coretune.training.trackers import send_to_trackers
from coretune.training.warmup_run import Setup
from coretune.training.weighting import loss_weights
from coretune.training.without_effect import settings_without_effect

log = logging.getLogger("coretune")


class CoresetMixin(BookingTrainer, ABC):
    """A stock trainer on a changing coreset of `train_dataset`.

    coreset    who selects, how much, how often; everything else is the stock trainer's, by keyword. Its draws
               have the seed of `args` (data_seed, else seed) unless it is given its own
    rows       the pool's tokens; left out, they are read from the prepared `train_dataset`. With weights or
               online signals the column `example_id` of `train_dataset` says which of them each row is
    target     trusted rows for the methods that take a target; several, each with its share of the budget
    signals_dir  where scans of the pool are kept; left out: output_dir/_coretune/signals

    `num_train_epochs` counts passes over the coreset, after the warm-up; `max_steps` counts all steps. What
    the stock trainer does once an epoch it does once a round here, and the `epoch` it logs is the round.
    Writes what it chose and what it cost into output_dir/_coretune, which no push to a hub takes along, and
    the coreset's state into every checkpoint, from which `resume_from_checkpoint` goes on. ValueError before
    anything is trained when settings, rows and model do not go together.
    """

    stock: ClassVar[type] = Trainer  # of which a warm-up run is made
    train_dataset: Any
    data_collator: Any
    _signature_columns: Any

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        coreset: CoresetConfig,
        rows: PoolRows | None = None,
        target: PoolRows | Sequence[Target] | None = None,
        signals_dir: str | Path | None = None,
        **stock: Any,
    ) -> None:
        refuse_measuring(stock)
        refuse_other_models(model)
        refuse_dataset(stock.get("train_dataset"), with_rows=rows is not None)
        if args is not None:
            self._refuse(args, coreset, stock)  # before a model is loaded
        model, args = self._loaded(model, args)
        super().__init__(model, args, **stock)
        if args is None:
            self._refuse(self.args, coreset, stock)
        keep_trainable(self.model)
        self.pool_rows: PoolRows = rows if rows is not None else self._prepared_rows(stock["train_dataset"])
        tell = log.warning if self.is_world_process_zero() else log.debug
        targets = targets_of(target)
        coreset, self.target_rows = without_examples(coreset, self.pool_rows, targets, tell)
        self.coreset_config = coreset = seeded(coreset, self.args)
        self.processes = Processes(self.args.process_index, self.args.world_size, self.args.ddp_timeout)
        self.ledger = Ledger()
        self.coreset_state: State | None = None
        self.stop_at: int | None = None
        self.held_out: Any = None  # the corpus of eval_dataset, where the caller made it of one
        self._order = Order(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self.resumption = Resumption(self)
        if self.pool_rows.weight is not None:
            self._refuse(self.args, replace(coreset, weighted=True), stock)
        self._weights = torch.ones(len(self.pool_rows.length))
        refuse_rows(self.train_dataset, len(self.pool_rows.length))
        refuse_frozen_model(self.model)
        refuse_strange(self.model, self.pool_rows, targets, self.eval_dataset)
        refuse_parallelism(self.get_total_train_batch_size(self.args), batch_of(self.args))
        self.steps_given = self.args.max_steps > 0
        length, pack = self.pool_rows.length, self._pack_tokens()
        self.schedule, self.args.max_steps = schedule_of(coreset, length, self.args, pack)
        for line in settings_without_effect(
            coreset, self.schedule, self.args.max_steps, length, bool(targets), signals_dir is not None
        ):
            tell("%s", line)
        self.setup = self._setup()
        unnamed = None if rows is None else unnamed_rows(self.train_dataset)
        self.signals = RunSignals(
            coreset,
            self.setup,
            Live(
                step=lambda: int(self.state.global_step),
                rate=lambda: float(self.lr_scheduler.get_last_lr()[0]),
                optimizer=lambda: self.optimizer,
            ),
            self.processes,
            targets=targets,
            store=Path(signals_dir or Path(self.args.output_dir) / SIGNALS).expanduser(),
            obstacle=unnamed or self.online_obstacle(self.args, self.compute_loss_func),
        )
        self.cost, self.measurement = self.signals.cost, self.signals.measurement
        self.ledger.counts_flops = self.cost.counted
        if self._batches_name_rows:
            if rows is None:
                self.train_dataset = with_positions(self.train_dataset)
            self.data_collator = with_example_id(self.data_collator)
        if self.schedule.pack:
            self.train_dataset = PackedRows(self.train_dataset)
        make_readable(self)
        self.add_callback(Rounds(self))

    def _loaded(self, model: Any, args: Any) -> tuple[Any, Any]:
        """Where the stock trainer would load something else than is meant: what it is given in its place."""
        return model, args

    def _setup(self) -> Setup:
        """As this trainer was made, before its dataset and collator tell rows."""
        if self.coreset_config.needs and self.is_fsdp_enabled:
            refuse_first_fsdp(self.accelerator.state.fsdp_plugin.fsdp_version)
        split = self.is_fsdp_enabled or self.is_deepspeed_enabled
        own = ("data_collator", "compute_loss_func", "optimizer_cls_and_kwargs")
        made = self.stock, self.model, self.args, self.train_dataset, self.pool_rows, self.processing_class
        return Setup(*made, {name: getattr(self, name) for name in own}, split)

    def _prepared_rows(self, given: Any) -> PreparedRows:
        """Those of train_dataset of which the loss counts a token; the others leave it, if the stock trainer
        has not left them out of those `given` yet."""
        tell = log.warning if self.is_world_process_zero() else log.debug
        warn_of_dropped(len(given), len(self.train_dataset), self.args, tell)
        rows = with_response(PreparedRows.of(self.train_dataset), tell)
        self.train_dataset = rows.dataset
        return rows

    def _refuse(self, args: Any, coreset: CoresetConfig, stock: Mapping[str, Any]) -> None:
        """ValueError for stock arguments that a coreset contradicts."""
        refuse_arguments(args, coreset.weighted, stock)
        why = self.online_obstacle(args, stock.get("compute_loss_func"))
        if coreset.refresh.online_signals is True and why is not None:
            raise ValueError(f"{why}; change that, or set refresh.online_signals to auto or false")

    @staticmethod
    def online_obstacle(args: Any, own_loss: Any) -> str | None:
        """Why training steps with these arguments do not show their rows' signals; None: they do."""
        return "online signals need the log-probabilities of TRL's SFTTrainer; use CoresetSFTTrainer"

    @abstractmethod
    def _weighted_loss(
        self, model: Any, inputs: dict[str, Any], weights: torch.Tensor, return_outputs: bool, items: Any
    ) -> Any:
        """The loss of a batch with a weight (b,) for each example, else as `compute_loss` gives it."""

    # ------------------------------------------------------------------------------------------- rounds

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The stock `train`. Gone on with is the newest whole checkpoint, or the one given, of this very run.

        ValueError: no such checkpoint; it is of other data, another model, tokenizer or setting; both
        fingerprints are named. FileNotFoundError: it has no coreset state.
        """
        self._refuse_second_run()
        with self.processes.alone(self.args.output_dir):
            found = self.resumption.begin(resume_from_checkpoint)
            if found is None:
                self._prepare()
            else:
                self._go_on(found)
            send_to_trackers(self.callback_handler.callbacks, self.coreset_config)
            with self.ledger.phase("training") as visit, self.own_rotation(), self.processes.exchanging():
                visit.flops = 0.0  # every step is booked by itself
                result = super().train(found.folder if found is not None else None, *args, **kwargs)
            if self.is_world_process_zero():
                path = Path(self.args.output_dir) / LEDGER
                with side_product(path):
                    self.ledger.write(path)
            refuse_broken_weights(self.model, self.state.global_step, self.args.output_dir)
        return result

    def _go_on(self, found: Resumed) -> None:
        self.schedule, self.coreset_state, self.ledger = found.schedule, found.state, found.ledger
        self.ledger.counts_flops = self.cost.counted
        self.args.max_steps = found.max_steps
        if self.signals.online is not None:
            self.signals.online.load(Path(found.folder))

    def select(self) -> State:
        """The first selection `train` would make, after the warm-up's steps; nothing is trained after it."""
        self._refuse_second_run()
        self.coreset_config = replace(self.coreset_config, defer_first_measurement=False)
        self.stop_at = self.schedule.warmup_rounds * self.schedule.steps
        with self.processes.alone(self.args.output_dir):
            if self.stop_at:
                self.train()
            else:
                self._prepare()
            return self.begin_round(self.stop_at)

    def _prepare(self) -> None:
        """Before a run's first step."""
        refuse_steps(self.args.max_steps, self.schedule.warmup_rounds * self.schedule.steps)
        self.signals.prepare(self.ledger, Path(self.args.output_dir) / WARMUP_RUN)
        if self.coreset_config.uses_checkpoints or self.signals.target_warmups is not None:
            # What is drawn from here on is the same with a warm-up run made or found.
            set_seed(self.args.seed)

    def begin_round(self, global_step: int) -> State:
        """Bring the state to the round that starts at this step; nothing to do when it was resumed there.

        On process 0 with all that is known of the pool; on the others with the coreset.
        """
        before, number = self.coreset_state, global_step // self.schedule.steps
        share = partial(state.broadcast_parts, before=before)
        now = self.processes.decide(lambda: self._decide(number), share)
        if not self.processes.first:
            now = state.from_broadcast(now, before, transitions.empty_pool(self.pool_rows.length))
        self.coreset_state = now
        if self.signals.online is not None:
            self.signals.online.began = bool(now.selections)
        self._order = round_order(now, self.schedule, self.coreset_config.seed)
        weights = loss_weights(now, self.pool_rows.weight, self.coreset_config.weighted)
        self._weights = torch.from_numpy(weights).float().to(self.args.device)
        return now

    def _decide(self, number: int) -> State:
        """The round of that number, on process 0; a selection that is made is recorded."""
        before, config, ledger = self.coreset_state, self.coreset_config, self.ledger
        if before is not None and before.round >= number:
            return before
        rows, tokenizer = self.pool_rows, self.processing_class
        run = self.schedule, self.measurement, ledger
        with loops_shown(not self.args.disable_tqdm):
            if before is None:
                pool = first_pool(config, rows, self.signals.duplicates, self.target_rows, tokenizer)
                now = refresh.start(config, pool, *run)
            else:
                now = refresh.advance(config, before, *run)
        warn_of_excluded(before, now, rows.ids)
        if now.selections > (before.selections if before else 0):
            # Not TRL's log: it would hand out, and forget, the means that it gathers for its own next line.
            folder, say = Path(self.args.output_dir), partial(Trainer.log, self)
            record(now, folder, config, rows, tokenizer, self.signals.targets, ledger, say)
        return now

    def end_step(self, global_step: int) -> bool:
        """Book the step that ended; whether training ends here."""
        assert self.coreset_state is not None
        at = (global_step - 1) % self.schedule.steps * self.schedule.batch
        rows = self._order.of(at, at + self.schedule.batch)
        self.book_step(rows, self.pool_rows.length, not self.coreset_state.selections)
        return global_step == self.stop_at

    # ------------------------------------------------------------------------------------ Trainer's seams

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        """Private in transformers (5.23 calls it once, for the training dataloader); pinned by a test."""
        return RoundSampler(self._handed_out, self.schedule.items, packed=self.schedule.pack > 0)

    def _handed_out(self) -> Order:
        """The round as far as training goes: transformers asks for max_steps only after a step, so that a run
        that is resumed at its end would make one step more."""
        if self.coreset_state is None:  # a batch to read, before there is a coreset: of the whole pool
            everything = transitions.whole_pool(self.pool_rows.length)
            return round_order(everything, self.schedule, self.coreset_config.seed)
        before = self.coreset_state.round * self.schedule.steps
        return self._order.first((self.args.max_steps - before) * self.schedule.batch)

    def begin_checkpoint(self, folder: Path) -> None:
        """Ours, into the stock checkpoint."""
        refuse_broken_weights(self.model, self.state.global_step, self.args.output_dir)
        if self.coreset_state is not None:
            self.resumption.save(folder, self.coreset_state)

    def checkpoint_content(self) -> Mapping[str, Any]:
        return self.resumption.content()

    def meet(self) -> None:
        self.processes.wait()

    def _set_signature_columns_if_needed(self) -> None:
        """Keep `example_id` through the removal of unused columns when the loss needs to know the row."""
        super()._set_signature_columns_if_needed()
        if self._batches_name_rows and EXAMPLE_ID not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, EXAMPLE_ID]

    @property
    def _batches_name_rows(self) -> bool:
        """Whether a batch says which rows of the pool it holds."""
        return self._weighs or self.signals.online is not None

    @property
    def _weighs(self) -> bool:
        """Whether rows differ in what their loss is multiplied by."""
        return self.coreset_config.weighted or self.pool_rows.weight is not None

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock step, with what it shows of its rows kept where the refresh asks for that."""
        online = self.signals.online
        around = nullcontext() if online is None else online.around(inputs, self.state.global_step)
        with around:
            loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.scaler is None:  # which leaves out a step whose gradients are not finite
            refuse_broken_loss(loss, self.state.global_step, self.args.output_dir)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The stock loss; with weights that of `weighting.py`."""
        ids = inputs.pop(EXAMPLE_ID, None)
        if not self.model.training:
            self.book_evaluated(inputs)
        if not self._weighs or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if ids is None:
            raise ValueError(
                f"a batch does not say which rows it holds, which weights need: give train_dataset a column "
                f"{EXAMPLE_ID} with each row's place among `rows`, and keep the collator the trainer has"
            )
        return self._weighted_loss(model, inputs, self._weights[ids], return_outputs, num_items_in_batch)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The stock card, with method, settings and cost."""
        card = Path(self.args.output_dir) / "README.md"
        with side_product(card):
            super().create_model_card(*args, **kwargs)
            if self.is_world_process_zero():
                write_section(card, section(self.coreset_config, self.coreset_state, self.ledger))

    # -------------------------------------------------------------------------------------------- set-up

    def _pack_tokens(self) -> int:
        """Tokens that rows are packed into; 0 where they are not."""
        return 0

    def _refuse_second_run(self) -> None:
        if self.coreset_state is not None:
            raise ValueError("this trainer has run: make a new one, with resume_from_checkpoint to go on")
