"""In a run what rows are compared with is measured once a refresh, however often that refresh measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_run import coreset_config, corpus, trainer

from coretune.filters.noise import Noise
from coretune.measure import signals
from coretune.training.row_signals import RowSignals


def test_several_measurements_of_one_refresh_share_a_reference(tmp_path, monkeypatch):
    references, looks = [], []
    of_target, look = signals._of_target, RowSignals.__call__

    def counted(meter, target, name):
        references.append(name)
        return of_target(meter, target, name)

    def looked(self, rows):
        looks.append(rows)
        return look(self, rows)

    monkeypatch.setattr(signals, "_of_target", counted)
    monkeypatch.setattr(RowSignals, "__call__", looked)
    config = coreset_config("less", filters=(Noise(pairs=8, min_auc=0.0),))
    run = trainer(tmp_path, config, target=corpus(12, 1))
    run.train()
    refreshes = len(run.ledger.rounds) - 1  # beside the first measurement, which is of all rows
    assert len(looks) > refreshes > 0  # candidates: choose, measure, choose again
    assert references.count("gradient") == 1 + refreshes
    pairs = run.measurement.reference_flops  # the losses that are compared with
    assert pairs == run.cost.pairs(8) > 0
    assert run.cost.references > 0
    without = replace(run.cost, references=0.0)
    expected = run.measurement.first.flops(np.arange(len(run.pool_rows.length))) + pairs
    expected += sum(map(without.measurement, looks)) + refreshes * (run.cost.references + pairs)
    assert run.ledger.costs["measurement"].flops == pytest.approx(expected)
