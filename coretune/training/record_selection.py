"""What is recorded of each selection: log, files, ledger. On process 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coretune.ledger import Ledger
from coretune.recording import run_record, selection_log
from coretune.recording.by_source import record_losses
from coretune.recording.run_files import LEDGER, LOSSES, SELECTION, TARGETS
from coretune.recording.target_record import record_targets
from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.sampler import PoolRows
from coretune.rounds.state import State
from coretune.rounds.targets import Target
from coretune.select.by_target import unserved
from coretune.training.saving import side_product

log = logging.getLogger("coretune")


def warn_of_excluded(before: State | None, now: State, ids: Sequence[str]) -> None:
    """Name the rows that are not usable any more in the log."""
    usable = before.pool.usable if before else np.ones(now.pool.n, bool)
    warning = selection_log.excluded(usable, now.pool.usable, ids)
    if warning is not None:
        log.warning("%s", warning)


def record(
    now: State,
    folder: Path,
    config: CoresetConfig,
    rows: PoolRows,
    tokenizer: Any,
    targets: Sequence[Target],
    ledger: Ledger,
    say: Callable[[Mapping[str, float]], None],
) -> None:
    """Files, ledger and log of a selection that was just made.

    say  given its figures, after the files, so that they can be read by then
    """
    if now.selections == 1:
        for line in unserved(now.coreset.figures, [target.name for target in targets]):
            log.warning("%s", line)

    def decode(tokens: list[list[int]]) -> list[str]:
        if tokenizer is None:  # of a plain Trainer whose method measures nothing
            return [" ".join(map(str, ids)) for ids in tokens]
        # batch_decode checks each token in Python first: six times the time of the decoding.
        fast = getattr(tokenizer, "backend_tokenizer", None)
        decode_all = tokenizer.batch_decode if fast is None else fast.decode_batch
        texts: list[str] = decode_all(tokens, skip_special_tokens=True)
        return texts

    mapped, others = config.refresh.embedding, config.record_unchosen
    with ledger.phase("other"), side_product(folder / SELECTION):
        run_record.record(folder, now, rows, decode, embedding=mapped, others=others, seed=config.seed)
    with ledger.phase("other"), side_product(folder / LOSSES):
        record_losses(folder, now, rows.source)
    if targets and now.selections == 1:
        with ledger.phase("other"), side_product(folder / TARGETS):
            record_targets(folder, targets, decode)
    with side_product(folder / LEDGER):
        ledger.write(folder / LEDGER)
    say(selection_log.figures(ledger.rounds[-1], now))
