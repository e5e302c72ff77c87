"""The `evaluate` section of a config: which metrics of the trained model, on what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

Metric = Literal["loss", "exact_match", "rouge"]


class EvaluateSection(BaseModel):
    """The `evaluate` section.

    file            held-out rows, in any format of train_data; left out: eval_data or eval_fraction
    metric          one metric, or a list of them
    max_new_tokens  of a generated answer
    rows            at most so many of the file's rows, the first in its canonical order; left out: all
    tasks           names of lm-eval tasks
    task_rows       examples of each task; left out: all
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    metric: Metric | list[Metric] = "exact_match"
    max_new_tokens: PositiveInt = 128
    rows: PositiveInt | None = None
    tasks: list[str] = []
    task_rows: PositiveInt | None = None

    @property
    def metrics(self) -> list[str]:
        return [self.metric] if isinstance(self.metric, str) else list(self.metric)

    @property
    def without_effect(self) -> Iterator[str]:
        """A line for each key without effect."""
        fields = type(self).model_fields
        if self.max_new_tokens != fields["max_new_tokens"].default and "rouge" not in self.metrics:
            yield "evaluate.max_new_tokens has no effect: of the metrics only rouge generates answers"
        if self.task_rows is not None and not self.tasks:
            yield "evaluate.task_rows has no effect: evaluate.tasks names none"
