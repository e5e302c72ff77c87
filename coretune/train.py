"""The seam to transformers and TRL: an unmodified trainer that trains on a changing coreset.

    Trainer epoch begins ─► due? ─► measure, select (dynamic.py) ─► the sampler hands out this round's rows

One round is one Trainer epoch: a sampler swapped in on_epoch_begin takes effect in that very epoch, while
rows swapped inside one would meet batches that are prefetched already. Every round is equally long, because
the Trainer reads the sampler's length once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer

from coretune import audit, dynamic
from coretune.dynamic import Clock, CoresetConfig, Meter, State
from coretune.ledger import Ledger, ModelShape, measurement_flops, training_flops
from coretune.measure.parameters import decoder_blocks
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.types import Array, Rows

LEDGER = "coretune_ledger.json"  # beside the weights in every checkpoint


@dataclass(frozen=True)
class PreparedRows:
    """What measuring needs to know of a prepared dataset; `Corpus` offers the same members.

    ids            n texts
    prompt_length  (n,) int64  tokens before the first one that the loss counts
    length         (n,) int64
    """

    dataset: Any
    ids: list[str]
    prompt_length: Array
    length: Array

    @classmethod
    def of(cls, dataset: Any) -> PreparedRows:
        """From a dataset with input_ids and labels, as SFTTrainer leaves it; an `id` column names the rows."""
        columns = dataset.column_names
        if "input_ids" not in columns or "labels" not in columns:
            raise ValueError(f"a prepared dataset has input_ids and labels, this one has {columns}")
        labels = [np.asarray(row) for row in dataset["labels"]]
        first = [int(np.argmax(row != -100)) if (row != -100).any() else len(row) for row in labels]
        ids = (
            [str(name) for name in dataset["id"]] if "id" in columns else [str(i) for i in range(len(labels))]
        )
        return cls(
            dataset, ids, np.asarray(first, np.int64), np.asarray([len(row) for row in labels], np.int64)
        )

    def tokens(self, rows: Rows | Sequence[int]) -> list[Array]:
        return [np.asarray(ids, np.int64) for ids in self.dataset[np.asarray(rows, np.int64)]["input_ids"]]


class RoundSampler(Sampler[int]):
    """Hands out the rows of the round that is current when iteration begins; its length never changes."""

    def __init__(self, rows: Callable[[], Rows], length: int) -> None:
        self._rows = rows
        self._length = length

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows().tolist())

    def __len__(self) -> int:
        return self._length


class _Rounds(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's clock into rounds and steps."""

    def __init__(self, trainer: CoresetSFTTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.begin_round(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.count_step(state.global_step)


class CoresetSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer on a changing coreset of `train_dataset`.

    coreset   who selects, how much, how often; everything else is the stock trainer's
    rows      the pool's tokens; left out, they are read from the prepared `train_dataset`
    measuring how signals are measured
    target    trusted rows for the methods that take a target
    excluded  rows that may not be chosen, (m,) positions

    `num_train_epochs` counts passes over the coreset. Writes selection.parquet and ledger.json in output_dir
    and the coreset's state into every checkpoint, from which `resume_from_checkpoint` goes on.
    """

    def __init__(
        self,
        *args: Any,
        coreset: CoresetConfig,
        rows: Any = None,
        measuring: MeasureSettings | None = None,
        target: Any = None,
        ledger: Ledger | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.coreset_config = coreset
        self.pool_rows = rows if rows is not None else PreparedRows.of(self.train_dataset)
        self.measuring = measuring or MeasureSettings()
        self.target = target
        self.ledger = ledger or Ledger()
        self._refuse_what_cannot_work()
        self.coreset_state: State | None = None
        self.clock = self._make_clock()
        if self.args.max_steps <= 0:
            steps = math.ceil(self._coreset_rows() / self.clock.batch)
            self.args.max_steps = math.ceil(self.args.num_train_epochs * steps)
        self.shape = model_shape(self.model)
        self._step_began: float | None = None
        self.add_callback(_Rounds(self))

    # ------------------------------------------------------------------------------------------- rounds

    def begin_round(self, global_step: int) -> None:
        """Bring the state to the round that starts at this step; nothing to do when it was resumed there."""
        number = global_step // self.clock.steps
        selections = self.coreset_state.selections if self.coreset_state else 0
        if self.coreset_state is None:
            pool = dynamic.empty_pool(self.pool_rows.length)
            self.coreset_state = dynamic.start(
                self.coreset_config, pool, self.clock, self._meter(), self.ledger
            )
        elif self.coreset_state.round < number:
            self.coreset_state = dynamic.advance(
                self.coreset_config, self.coreset_state, self.clock, self._meter(), self.ledger
            )
        if self.coreset_state.selections > selections:
            self._record_selection(self.coreset_state)
        self._order = dynamic.round_rows(self.coreset_state, self.clock, self.coreset_config.seed)
        self._weights = torch.from_numpy(dynamic.row_weights(self.coreset_state)).float()
        self._step_began = self.ledger.clock()

    def count_step(self, global_step: int) -> None:
        """Book the step that ended: its rows, tokens and FLOPs, as warm-up or as training."""
        assert self.coreset_state is not None
        at = (global_step - 1) % self.clock.steps * self.clock.batch
        lengths = self.pool_rows.length[self._order[at : at + self.clock.batch]]
        phase = "training" if self.coreset_state.selections else "warm-up"
        now = self.ledger.clock()
        self.ledger.add(
            phase,
            seconds=now - (self._step_began or now) if phase == "warm-up" else 0.0,
            rows=len(lengths),
            tokens=int(lengths.sum()),
            flops=training_flops(
                self.shape,
                lengths,
                adapter_parameters=self._adapter_parameters(),
                checkpointing=self.model.is_gradient_checkpointing,
            ),
        )
        self._step_began = now

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The stock `train`; a checkpoint without coreset state is refused."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"no checkpoint in {self.args.output_dir}; train without resume_from_checkpoint"
                )
        if resume_from_checkpoint:
            self.coreset_state = dynamic.load(resume_from_checkpoint)
            saved = json.loads((Path(resume_from_checkpoint) / LEDGER).read_text(encoding="utf-8"))
            self.ledger = Ledger.from_dict(saved)
            self._begin_from(self.coreset_state)
        with self.ledger.phase("training") as visit:
            visit.flops = 0.0
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.is_world_process_zero():
            self.ledger.write(Path(self.args.output_dir) / "ledger.json")
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.ledger.phase("evaluation"):
            return super().evaluate(*args, **kwargs)  # type: ignore[no-any-return]

    def select(self) -> State:
        """The first selection, after the warm-up's steps where there is a warm-up. Nothing is trained after it."""
        self.args.max_steps = self.clock.warmup_rounds * self.clock.steps
        if self.args.max_steps:
            self.train()
        self.begin_round(self.args.max_steps)
        assert self.coreset_state is not None
        return self.coreset_state

    def _begin_from(self, state: State) -> None:
        self._order = dynamic.round_rows(state, self.clock, self.coreset_config.seed)
        self._weights = torch.from_numpy(dynamic.row_weights(state)).float()

    def _record_selection(self, state: State) -> None:
        entry = self.ledger.rounds[-1]
        figures = {"round": state.round, "rows": entry.rows_chosen, "rows_measured": entry.rows_measured}
        figures |= {"seconds": entry.seconds, "tokens": int(state.pool.cost[state.coreset.indices].sum())}
        if entry.overlap is not None:
            figures["overlap"] = entry.overlap
        figures |= {
            f"approximation/{name}": value for name, value in entry.approximation.items() if value is not None
        }
        self.log({f"coreset/{name}": float(value) for name, value in figures.items()})
        if not self.is_world_process_zero():
            return
        rows = audit.rows_to_keep(state.pool, state.coreset, self.coreset_config.seed)
        table = audit.describe(
            state.pool, state.coreset, round=state.round, ids=self.pool_rows.ids, rows=rows
        )
        audit.append(Path(self.args.output_dir) / "selection.parquet", table)
        self.ledger.write(Path(self.args.output_dir) / "ledger.json")

    # ------------------------------------------------------------------------------------ Trainer's seams

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        """Private in transformers (seen in 5.23: called once for the training dataloader); pinned by a test."""
        return RoundSampler(lambda: self._order, self.clock.rows)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Our state goes first: the stock method writes trainer_state.json last, so its presence means whole."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and self.coreset_state is not None:
            folder.mkdir(parents=True, exist_ok=True)
            dynamic.save(self.coreset_state, folder)
            self.ledger.write(folder / LEDGER)
        super()._save_checkpoint(model, trial)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep `example_id` through the removal of unused columns when the loss needs to know the row."""
        super()._set_signature_columns_if_needed()
        if self.coreset_config.weighted and "example_id" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "example_id"]
            self.data_collator = _with_example_id(self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock loss, each example's tokens multiplied by its coreset weight when weights are asked for."""
        rows = inputs.pop("example_id", None)
        if rows is None or not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        weights = self._weights.to(rows.device)[rows]

        def weighted(**given: Any) -> Any:
            outputs = model(**given)
            return replace(outputs, log_probs=outputs.log_probs * weights[:, None])

        return super().compute_loss(weighted, inputs, *args, **kwargs)

    # -------------------------------------------------------------------------------------------- set-up

    def _refuse_what_cannot_work(self) -> None:
        args = self.args
        if args.packing or args.padding_free:
            raise ValueError(
                "packing and padding_free join rows, so rows cannot be selected; set both to false"
            )
        if self.coreset_config.weighted and (args.loss_type != "nll" or args.label_smoothing_factor):
            raise ValueError(
                "weighted needs loss_type nll without label smoothing; change them or set weighted: false"
            )
        if self.coreset_config.weighted and args.use_liger_kernel:
            raise ValueError(
                "weighted needs per-token losses, which Liger's fused loss hides; set weighted: false"
            )
        if args.world_size > 1:
            raise ValueError(f"one process is supported so far, and {args.world_size} were started")

    def _coreset_rows(self) -> int:
        """Rows in the coreset; for a token budget what it holds of average rows."""
        budget = self.coreset_config.budget.resolve(dynamic.empty_pool(self.pool_rows.length))
        if budget.unit == "rows":
            return budget.amount
        return max(1, round(budget.amount / float(self.pool_rows.length.mean())))

    def _make_clock(self) -> Clock:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return dynamic.clock(self.coreset_config, len(self.pool_rows.length), self._coreset_rows(), batch)

    def _adapter_parameters(self) -> int | None:
        if not hasattr(self.model, "peft_config"):
            return None
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _meter(self) -> Meter | None:
        """Measures under the weights of the moment, with a progress bar on the main process."""
        names = self.coreset_config.needs
        if not names:
            return None
        tokenizer = self.processing_class
        autocast = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else None
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()

        def measure(rows: Rows) -> Any:
            with tqdm(total=len(rows), desc="measuring", unit="row", leave=False, disable=hidden) as bar:
                look = measurer(
                    self.model,
                    self.pool_rows,
                    names,
                    replace(self.measuring, autocast=autocast),
                    pad_token_id=tokenizer.pad_token_id,
                    bos_token_id=bos,
                    target=self.target,
                    progress=bar.update,
                )
                return look(rows)

        return Meter(measure, self._measurement_flops)

    def _measurement_flops(self, rows: Rows) -> float:
        lengths = self.pool_rows.length[rows]
        blocks = self.measuring.last_blocks or self.shape.layers
        names = self.coreset_config.needs
        return measurement_flops(
            self.shape, lengths, lengths - self.pool_rows.prompt_length[rows], names, blocks=blocks
        )


def _with_example_id(
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> Callable[..., dict[str, Any]]:
    def collated(examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate([{k: v for k, v in example.items() if k != "example_id"} for example in examples])
        if "example_id" in examples[0]:
            batch["example_id"] = torch.tensor([example["example_id"] for example in examples])
        return batch

    return collated


def model_shape(model: Any) -> ModelShape:
    """What the FLOP formulas need, read off the model: blocks, head, attention width."""
    config = model.config.get_text_config()
    _, blocks = decoder_blocks(model.get_decoder())
    head_dim = (
        config.head_dim
        if getattr(config, "head_dim", None)
        else config.hidden_size // config.num_attention_heads
    )
    weights = sum(p.numel() for name, p in blocks.named_parameters() if p.ndim == 2 and "lora_" not in name)
    return ModelShape(
        block_parameters=weights,
        head_parameters=config.vocab_size * config.hidden_size,
        layers=len(blocks),
        attention_width=config.num_attention_heads * head_dim,
    )
