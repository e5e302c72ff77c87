"""One whole job: data and model in, a run directory out.

config ─ corpora ─ trainer ─► train ─► evaluate ─► RUN/weights · RUN/_coretune/…
                           └► select ────────────► RUN/_coretune/coreset.jsonl …
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, dynamic_module_utils, set_seed
from transformers.utils import logging as transformers_logging

from coretune.config import PROVENANCE, ConfigError, RunConfig, at_hand
from coretune.console import first_process
from coretune.coreset_section import build_coreset, spelled_out, warn_of_unused
from coretune.data.corpus import Corpus
from coretune.data.raw import json_line
from coretune.data.sources import described
from coretune.files import atomic_write, write_text, writing
from coretune.ledger import TABLE_HEADER
from coretune.planning.plan import prediction
from coretune.planning.workload import about_run, counted
from coretune.provenance import inputs_of, provenance, refuse_other_data, refuse_other_inputs
from coretune.reading.disk import disk_bytes
from coretune.recording.components import CODES, why
from coretune.recording.row_account import write_account
from coretune.recording.run_files import (
    CONFIG,
    CORESET,
    HISTORY,
    LEDGER,
    METRICS,
    REPORT,
    SELECTING,
    SIGNALS,
    WARMUP_RUN,
    checkpoints_of,
)
from coretune.recording.run_lock import run_lock
from coretune.recording.target_record import served_by
from coretune.report import write_report
from coretune.rounds.state import State
from coretune.rounds.targets import Target
from coretune.scoring.evaluate import Row
from coretune.scoring.evaluate_section import EvaluateSection
from coretune.scoring.quality import metrics_of, task_metrics
from coretune.secrets import without_secrets
from coretune.training.adapter_names import refuse_unmatched
from coretune.training.corpora import corpus_of, pool_of
from coretune.training.model_kind import refuse_other_models
from coretune.training.row_checks import refuse_strange_rows
from coretune.training.run_folder import holds_run, refuse_foreign, refuse_nothing_to_go_on_with
from coretune.training.saving import REMEDY, side_product
from coretune.training.sections import adapter_config, training_arguments
from coretune.training.tokenizers import load_tokenizer, longest_row, row_tokenizer
from coretune.training.train import CoresetSFTTrainer
from coretune.training.watch import ReportWriter
from coretune.training.without_effect import arguments_without_effect
from coretune.yaml_text import write

log = logging.getLogger("coretune")


def train(
    config: RunConfig, on_step: Callable[[], object] | None = None, *, save: bool = True
) -> CoresetSFTTrainer:
    """`coretune train`: fine-tune on the coreset, evaluate, save. The trainer holds state and ledger.

    on_step  called after every step, in place of everything that is shown on the console
    save     whether the trained weights are kept
    """
    with run_lock(config.output_dir, first_process()), writing(config.output_dir, None, REMEDY):
        return _train(config, on_step, save)


def _train(config: RunConfig, on_step: Callable[[], object] | None, save: bool) -> CoresetSFTTrainer:
    folder = Path(config.output_dir)
    _refuse_old_run(config)
    here = at_hand(config)  # what is written down names the model as the user did
    trainer = build_trainer(here) if on_step is None else _silent_trainer(here, on_step)
    if trainer.is_world_process_zero():
        (folder / SELECTING).unlink(missing_ok=True)  # of a selection that was cut: this is a training run
        _write_config(config, trainer)
        _write_account(config, trainer)
    unused = config.evaluate.without_effect if config.evaluate is not None else ()
    for line in (*arguments_without_effect(config.training, trainer.args, config.evaluated), *unused):
        log.warning("%s", line)
    scored = _scored_rows(here, trainer)  # what is wrong with the file is to be known before training
    trainer.ledger.predicted = prediction(config.output_dir, lambda: about_run(config)) or counted(
        trainer, config
    )
    trainer.train(config.resume_from_checkpoint)
    if save:
        trainer.save_model()
        trainer.create_model_card()
    with side_product(folder / HISTORY):
        trainer.save_state()
    metrics = trainer.evaluate() if config.evaluated else {}
    if config.evaluate is not None:
        metrics |= _quality(config.evaluate, trainer, scored)
    if metrics:
        if on_step is None:
            trainer.log_metrics("eval", metrics)
        with side_product(folder / METRICS):
            trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        with side_product(folder / LEDGER):
            trainer.ledger.disk = disk_bytes(folder)
            trainer.ledger.write(folder / LEDGER)
        _write_report(config, trainer)
    return trainer


def select(config: RunConfig, quiet: bool = False) -> Path:
    """`coretune select`: the first selection of the same run, without training after it.

    The warm-up, when the method has one, is trained as in `train`: set coreset.refresh.warmup=0 to select
    with the model as it is. Returns the path of coreset.jsonl: the user's rows in the order chosen, untouched
    but for one key more, `coretune`.
    """
    resumed = config.resume_from_checkpoint  # true alone begins a selection anew that was cut
    if isinstance(resumed, str) or (resumed and checkpoints_of(config.output_dir)):
        raise ConfigError(
            "select goes on with no run: leave resume_from_checkpoint out; to choose by the weights of a "
            "checkpoint set model_name_or_path to its folder"
        )
    quick = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    training = {**config.training, **quick}
    alone = config.model_copy(update={"training": training})
    with run_lock(config.output_dir, first_process()), writing(config.output_dir, None, "make room"):
        _refuse_run_before_selection(config.output_dir)
        trainer = _silent_trainer(alone, lambda: None) if quiet else build_trainer(alone)
        first = trainer.is_world_process_zero()
        if first:
            write_text(Path(config.output_dir) / SELECTING, "")
            _write_config(config, trainer)
            _write_account(config, trainer)
        state = trainer.select()
        path = Path(config.output_dir) / CORESET
        if first:
            _write_coreset(path, _corpus(trainer), state, trainer.signals.targets)
            (Path(config.output_dir) / SELECTING).unlink(missing_ok=True)
            with side_product(Path(config.output_dir) / LEDGER):
                trainer.ledger.write(Path(config.output_dir) / LEDGER)
            _write_report(config, trainer)
    return path


def build_trainer(config: RunConfig, model: Any = None, **stock: Any) -> CoresetSFTTrainer:
    """Corpora, model and trainer of a config, all checked; `stock` goes to SFTTrainer as it is.

    model  of a trainer of the same model and adapter, where it is not to be loaded anew
    """
    if not sys.stderr.isatty():
        no_bars()
    # Whether a model folder's own Python may run the config says; nobody is asked, least of all a pipe.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    config = at_hand(config)
    coreset = build_coreset(config.coreset, config.coreset_seed)
    refuse_other_models(config.model_name_or_path)
    warn_of_unused(config.coreset, coreset)
    args = training_arguments(config)
    adapter = adapter_config(config) if model is None else None
    if model is not None:
        args.model_init_kwargs = None  # TRL would say that they are ignored
    tokenizer = load_tokenizer(config.model_name_or_path, args)
    length = longest_row(config.model_name_or_path, args)
    rows = row_tokenizer(tokenizer, args)
    pool, held_out = pool_of(config, rows, length)
    targets = _targets(config, rows, length)
    if config.provenance is not None:
        refuse_other_data(config.provenance, pool)
    set_seed(args.seed)  # TRL 1.14 draws the adapter before it seeds
    try:
        trainer = CoresetSFTTrainer(
            model=config.model_name_or_path if model is None else model,
            args=args,
            train_dataset=pool.dataset,
            eval_dataset=held_out.dataset if held_out is not None else None,
            processing_class=tokenizer,
            peft_config=adapter,
            coreset=coreset,
            rows=pool,
            target=targets,
            signals_dir=config.signals_dir,
            **stock,
        )
    except SafetensorError as error:
        raise ConfigError(
            f"the weights of {config.model_name_or_path} are damaged ({error}): restore their files"
        ) from None
    _refuse_frozen(trainer.model)
    refuse_unmatched(trainer.model, config.peft or {})
    trainer.held_out = held_out
    if (then := config.provenance) is not None:
        trainer.processes.decide(
            lambda: refuse_other_inputs(then, inputs_of(config, trainer)), lambda _: None
        )
    if config.report == "refresh":
        trainer.add_callback(ReportWriter(Path(config.output_dir), lambda: trainer.ledger))
    return trainer


def _scored_rows(config: RunConfig, trainer: CoresetSFTTrainer) -> list[Row]:
    """The rows of the `evaluate` section, [] without one; ConfigError when no file is given."""
    if config.evaluate is None:
        return []
    source = config.evaluate.file or config.eval_data
    held_out = config.eval_fraction is not None and source is None
    if source is None and not held_out:
        raise ConfigError("evaluate has no rows: give evaluate.file, or eval_data")
    source = source or config.train_data
    length = longest_row(config.model_name_or_path, trainer.args)
    answers = config.model_copy(
        update={"training": {}, "train_on": "last"}
    )  # what the loss counts has no say in what is generated
    corpus = corpus_of(source, answers, trainer.processing_class, length)
    refuse_strange_rows(trainer.model, corpus, described(source))
    kept = set(trainer.held_out.ids) if held_out else set(corpus.ids)
    rows = np.array([row for row, name in enumerate(corpus.ids) if name in kept], dtype=np.int64)
    ends = corpus.prompt_length[rows].tolist()
    return [(ids.tolist(), end) for ids, end in zip(corpus.tokens(rows), ends, strict=True)]


def _quality(section: EvaluateSection, trainer: CoresetSFTTrainer, rows: list[Row]) -> dict[str, float]:
    """`eval_…` -> figure. FLOPs are those of a forward pass over every token read or generated."""
    bar = not trainer.args.disable_tqdm and trainer.is_world_process_zero()
    with trainer.ledger.phase("evaluation", rows=len(rows[: section.rows])) as visit:
        found, visit.tokens = metrics_of(trainer.model, trainer.processing_class, rows, section, bar)
        visit.flops = trainer.cost.evaluation(np.array([visit.tokens / len(rows)] * len(rows)))
        if section.tasks:
            found |= task_metrics(trainer.model, trainer.processing_class, section)
            visit.flops = None  # what lm-eval computes, nobody counted
    return {f"eval_{name}": value for name, value in found.items()}


def _write_report(config: RunConfig, trainer: CoresetSFTTrainer) -> None:
    """The last page: with the evaluation, and with the ledger as it was written."""
    if config.report != "never":
        with side_product(Path(config.output_dir) / REPORT):
            write_report(config.output_dir)


def _silent_trainer(config: RunConfig, on_step: Callable[[], object]) -> CoresetSFTTrainer:
    training = {**config.training, "disable_tqdm": True}
    trainer = build_trainer(config.model_copy(update={"training": training}), callbacks=[_Steps(on_step)])
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Steps(TrainerCallback):
    def __init__(self, on_step: Callable[[], object]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step()


def quiet() -> None:
    """No bars and no notes of the libraries; errors still show."""
    no_bars()
    transformers_logging.set_verbosity_error()
    log.setLevel(logging.ERROR)


def no_bars() -> None:
    """No bars of the libraries, which without a terminal are long lines of nothing."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def summary(trainer: CoresetSFTTrainer) -> list[tuple[str, ...]]:
    """The ledger as printable rows, header first."""
    return [TABLE_HEADER, *trainer.ledger.table()]


def against_plan(trainer: CoresetSFTTrainer) -> str:
    """A line: what was predicted, and by how much the outcome differs."""
    assert trainer.ledger.predicted is not None
    said, was = trainer.ledger.predicted["total"], trainer.ledger.total()
    parts = [
        f"{value:,.3g} {unit} ({(outcome or 0) / value - 1:+.0%})"
        for value, outcome, unit in ((said["seconds"], was.seconds, "s"), (said["flops"], was.flops, "FLOPs"))
        if value
    ]
    return f"predicted: {', '.join(parts)}"


def _refuse_frozen(model: Any) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("peft leaves no parameter to train: correct the section, or leave it out")


def _targets(config: RunConfig, tokenizer: Any, length: int) -> list[Target]:
    """A corpus for each file of target_data, with its share of the budget."""
    given = config.target_data or {}
    shares = {given: 1.0} if isinstance(given, str) else given
    return [Target(corpus_of(file, config, tokenizer, length), share, file) for file, share in shares.items()]


def _corpus(trainer: CoresetSFTTrainer) -> Corpus:
    assert isinstance(trainer.pool_rows, Corpus)
    return trainer.pool_rows


def _refuse_old_run(config: RunConfig) -> None:
    """Two runs never mix in one directory."""
    if isinstance(config.resume_from_checkpoint, str):
        refuse_foreign(config.output_dir, config.resume_from_checkpoint)
    elif config.resume_from_checkpoint:
        refuse_nothing_to_go_on_with(config.output_dir)
    elif holds_run(config.output_dir):
        raise ConfigError(
            f"{config.output_dir} holds a run already; give another output_dir, remove it (what is in "
            f"{WARMUP_RUN} and {SIGNALS} may stay: the same settings go on with it), or go on with "
            "resume_from_checkpoint=true"
        )


def _refuse_run_before_selection(output_dir: str) -> None:
    """A selection is not gone on with: one that was cut begins anew, what is finished stays."""
    if holds_run(output_dir, finished=True):
        raise ConfigError(
            f"{output_dir} holds a run already; give another output_dir, or remove it (what is in "
            f"{WARMUP_RUN} and {SIGNALS} may stay: the same settings go on with it)"
        )
    if holds_run(output_dir):
        log.warning("the selection in %s was cut: it begins from the start", output_dir)


def _write_config(config: RunConfig, trainer: CoresetSFTTrainer) -> None:
    """RUN/_coretune/config.yaml: what was asked for but for tokens and passwords, all settings of the coreset
    with their values, versions and fingerprints."""
    resolved = config.model_dump(exclude_none=True, exclude={PROVENANCE, "resume_from_checkpoint"})
    resolved = without_secrets(resolved)
    coreset = build_coreset(config.coreset, config.coreset_seed)
    resolved["coreset"] = spelled_out(coreset, config.coreset)
    resolved[PROVENANCE] = provenance(config, trainer)
    write_text(Path(config.output_dir) / CONFIG, write(resolved))


def _write_account(config: RunConfig, trainer: CoresetSFTTrainer) -> None:
    """RUN/_coretune/rows.json (`row_account.py`)."""
    pool = _corpus(trainer)
    kept = len(pool) + (len(trainer.held_out) if config.eval_fraction is not None else 0)
    write_account(Path(config.output_dir), kept, pool.dropped, pool.left_out, pool.truncated, pool.notes)


def _write_coreset(path: Path, pool: Corpus, state: State, targets: Sequence[Target]) -> None:
    """One line a chosen row. The file appears whole or not at all."""
    coreset = state.coreset
    reasons = {name: values for name, values in coreset.reasons.items() if name not in CODES}
    nulls = 0
    with atomic_write(path) as file:
        for rank, row in enumerate(coreset.indices):
            facts = {
                "id": pool.ids[row],
                "rank": rank,
                "weight": _number(coreset.weights[rank]),
                "gain": _number(coreset.gains[rank]),
                "components": {name: _number(values[row]) for name, values in reasons.items()},
            }
            if (served := served_by(coreset.reasons, targets, row)) is not None:
                facts["serves"] = served
            facts["why"] = why(facts["components"], served)
            line, count = json_line({**pool.record(row), "coretune": facts})
            file.write(line.encode() + b"\n")
            nulls += count
    if nulls:
        log.warning("%s: %d numbers that JSON has not (NaN, infinite) are written as null", path, nulls)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
