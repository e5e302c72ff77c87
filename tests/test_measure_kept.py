"""In a run the reference of a refresh is measured once, however often that refresh measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_run import coreset_config, trainer

from coretune.measure.meter import SignalMeter
from coretune.training.row_signals import RowSignals


def test_several_measurements_of_one_refresh_share_a_reference(tmp_path, monkeypatch):
    references, looks = [], []
    mean_gradient, look = SignalMeter.mean_gradient, RowSignals.__call__

    def counted(self, *arguments):
        references.append(1)
        return mean_gradient(self, *arguments)

    def looked(self, rows):
        looks.append(rows)
        return look(self, rows)

    monkeypatch.setattr(SignalMeter, "mean_gradient", counted)
    monkeypatch.setattr(RowSignals, "__call__", looked)
    config = coreset_config()
    selector = replace(config.selector, importance="alignment", lambda_=0.5)
    run = trainer(tmp_path, replace(config, selector=selector))
    run.train()
    refreshes = len(run.ledger.rounds) - 1  # beside the first measurement, which is of all rows
    assert len(looks) > refreshes > 0  # candidates: choose, measure, choose again
    assert len(references) == 1 + refreshes
    without = replace(run.cost, references=0.0)
    rows = [np.arange(len(run.pool_rows.length)), *looks]
    each = run.cost.references + run.measurement.reference_flops  # the gradient, and the pairs' losses
    assert run.measurement.reference_flops == run.cost.pairs(8) > 0
    expected = sum(map(without.measurement, rows)) + (1 + refreshes) * each
    assert run.ledger.costs["measurement"].flops == pytest.approx(expected)
