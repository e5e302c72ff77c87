"""The loop over batches: which work the asked signals need, and their values written row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from coretune.measure import passes
from coretune.measure.batches import Batch, collate, filler, pack
from coretune.measure.embeddings import (
    finite_rows,
    prompt_embedding,
    response_embedding,
    weighted_embedding,
    where_good,
)
from coretune.measure.head import HeadResult
from coretune.measure.moments import Moments
from coretune.measure.parameters import Choice, choose, full_shape
from coretune.measure.precondition import Precondition, preconditioner
from coretune.measure.project import Along, MatrixProjection, Sketch, generator
from coretune.measure.readers import Built, Projected, SquareNorm
from coretune.measure.settings import MeasureSettings
from coretune.measure.split import is_split, most
from coretune.types import TARGET_SIMILARITY, Array

NEED_HEAD = frozenset({"loss", "head_gradient"})
NEED_BACKWARD = frozenset({"gradient_norm", "gradient", "target_cosine"})
PROJECTED = frozenset({"gradient", "target_cosine"})
WEIGHTED = frozenset({"weighted_embedding", TARGET_SIMILARITY})
GradientReader = SquareNorm | Projected | Built
#: Models whose logits were found to be their head's: that depends on no weight, and costs two passes.
_checked: WeakSet[Any] = WeakSet()


@dataclass(frozen=True)
class References:
    """What rows are compared with.

    directions  (m, projection_dim) float32, unit projected gradients of the target's examples; for
                `target_cosine`
    embeddings  (m, d) float32, their unit `weighted_embedding`; for `target_similarity`
    """

    directions: Tensor | None = None
    embeddings: Tensor | None = None

    def compared(self, name: str) -> Tensor | None:
        """(m, …) what the rows' signal of that name is a cosine with; None for other signals."""
        return {"target_cosine": self.directions, TARGET_SIMILARITY: self.embeddings}.get(name)


class SignalMeter:
    """A model, the parameters that count, and their projections; to be used inside `passes.untouched`.

    directions  by parameter, of its shape: the first coordinates of a projected gradient are along these, the
                others its projection as ever; a parameter that a direction lacks is 0 in it
    """

    def __init__(
        self,
        model: Any,
        settings: MeasureSettings,
        names: frozenset[str],
        pad_token_id: int,
        directions: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self.model, self.settings, self.pad_token_id = model, settings, pad_token_id
        self.device: torch.device = model.get_output_embeddings().weight.device
        self.split = is_split(model)
        self.choice = Choice([])
        if names & NEED_BACKWARD:
            self.choice = choose(model, settings.last_blocks, settings.parameters)
        self.projected_dim = settings.projection_dim - len(directions)
        self.projections = self._projections() if names & PROJECTED else {}
        self.along = self._along(directions) if directions else {}
        self.head_projection = self._head_projection() if "head_gradient" in names else None

    def signals(
        self,
        tokens: Sequence[Array],
        labels: Sequence[Array],
        names: frozenset[str],
        references: References,
        progress: Callable[[int], object] | None,
        precondition: Precondition | None = None,
    ) -> dict[str, Array]:
        """Name -> (m, ...) float32, row r describes tokens[r].

        precondition   of the projected signals; None where the settings ask for none, and for the target
        """
        found: dict[str, Array] = {
            name: np.full((len(tokens), *self._shape(name, references)), np.nan, dtype=np.float32)
            for name in sorted(names)
        }
        if not found:
            return found
        for batch in self._batches(tokens, labels, self.settings.batch_tokens):
            for name, value in self._measure(batch, names, references, precondition).items():
                found[name][batch.where] = value.cpu().numpy()
            if progress is not None:
                progress(len(batch.where))
        return found

    def preconditioner(self, moments: Moments) -> Precondition | None:
        """What the settings ask for, of the chosen parameters; ValueError where the moments are of others."""
        if self.settings.preconditioner == "none":
            return None
        return preconditioner(self.settings.preconditioner, moments, self.choice.shapes, self.device)

    def check_head(self) -> None:
        """Refuses a model whose logits are not its head's; once a model."""
        if self.model not in _checked:
            few = collate([np.arange(8)], [np.arange(8)], np.zeros(1, dtype=np.int64), self.pad_token_id)
            passes.check_head(self.model, few.to(self.device))
            _checked.add(self.model)

    def _batches(
        self, tokens: Sequence[Array], labels: Sequence[Array], batch_tokens: int
    ) -> Iterator[Batch]:
        """All rows, and after them batches of none where other processes that hold the model have more."""
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        packed = pack(lengths, batch_tokens)
        longest = most(len(packed), self.device) if self.split else len(packed)
        for where in packed:
            yield collate(tokens, labels, where, self.pad_token_id).to(self.device)
        for _ in range(longest - len(packed)):
            yield filler(self.pad_token_id).to(self.device)

    def _measure(
        self,
        batch: Batch,
        names: frozenset[str],
        references: References,
        precondition: Precondition | None,
    ) -> dict[str, Tensor]:
        """Name -> (B, ...) of one batch."""
        projection = self.head_projection if "head_gradient" in names else None
        value: dict[str, Tensor] = {}
        response: HeadResult | None
        if names & NEED_BACKWARD:
            readers = self._readers(batch.size, names, precondition)
            hidden, response = passes.forward_backward(
                self.model, batch, self.choice, list(readers.values()), projection=projection
            )
            value = _gradient_signals(readers, references)
        else:
            hidden, response = passes.forward_only(
                self.model, batch, head=bool(names & NEED_HEAD), projection=projection
            )
        if response is not None:
            # A row without a response has a gradient of zero by arithmetic, but no gradient by meaning.
            value["loss"] = response.loss
            if response.feature is not None:
                value["head_gradient"] = response.feature
            value = {name: where_good(response.loss.isfinite(), signal) for name, signal in value.items()}
        if "response_embedding" in names:
            value["response_embedding"] = response_embedding(hidden, batch)
        if "prompt_embedding" in names:
            value["prompt_embedding"] = prompt_embedding(hidden, batch)
        if names & WEIGHTED:
            value["weighted_embedding"] = weighted_embedding(hidden, batch)
        if TARGET_SIMILARITY in names:
            assert references.embeddings is not None
            value[TARGET_SIMILARITY] = _cosines(value["weighted_embedding"], references.embeddings)
        return {
            name: where_good(finite_rows(signal), signal) for name, signal in value.items() if name in names
        }

    def _readers(
        self, rows: int, names: frozenset[str], precondition: Precondition | None
    ) -> dict[str, GradientReader]:
        readers: dict[str, GradientReader] = {}
        if "gradient_norm" in names:
            readers["gradient_norm"] = SquareNorm(rows, self.device)
        if names & PROJECTED:
            dim, projections = self.settings.projection_dim, self.projections
            readers["gradient"] = (
                Built(rows, dim, self.along or projections, precondition, self.device)
                if self.along or precondition is not None
                else Projected(rows, dim, projections, self.device)
            )
        return readers

    def _projections(self) -> dict[str, MatrixProjection | Sketch]:
        """One for each chosen parameter, independent of each other."""
        settings = self.settings
        projections: dict[str, MatrixProjection | Sketch] = {}
        for name, shape in self.choice.shapes.items():
            if len(shape) == 1:
                draw = generator(settings.seed, name)
                projections[name] = Sketch.make(shape[0], self.projected_dim, draw, self.device)
            else:
                projections[name] = self._matrix_projection(name, (shape[0], shape[1]))
        return projections

    def _matrix_projection(self, name: str, shape: tuple[int, int]) -> MatrixProjection:
        settings = self.settings
        # [choice] No side is cut where the gradient is built to be preconditioned: one sketch varies less.
        whole = settings.basis == "sjlt" or settings.preconditioner != "none"
        longest = max(shape) if whole else settings.factor_dim  # of a side that is not cut
        return MatrixProjection.make(name, shape, self.projected_dim, longest, settings.seed, self.device)

    def _along(self, directions: Sequence[Mapping[str, Tensor]]) -> dict[str, Along]:
        shapes, along = self.choice.shapes, {}
        for name, rest in self.projections.items():
            each = [one[name] if name in one else torch.zeros(shapes[name]) for one in directions]
            along[name] = Along(torch.stack(each).to(self.device), rest)
        return along

    def _head_projection(self) -> MatrixProjection:
        settings = self.settings
        vocabulary, width = full_shape(self.model.get_output_embeddings(), "weight")
        return MatrixProjection.make(
            "head_gradient",
            (vocabulary, width),
            settings.projection_dim,
            settings.factor_dim,
            settings.seed,
            self.device,
        )

    def _shape(self, name: str, references: References) -> tuple[int, ...]:
        """Of one row of that signal."""
        if (others := references.compared(name)) is not None:
            return (len(others),)
        if name in ("response_embedding", "prompt_embedding", "weighted_embedding"):
            return (full_shape(self.model.get_output_embeddings(), "weight")[1],)
        return (self.settings.projection_dim,) if name in ("gradient", "head_gradient") else ()


def _gradient_signals(readers: dict[str, GradientReader], references: References) -> dict[str, Tensor]:
    value = {name: reader.value for name, reader in readers.items()}
    if "gradient_norm" in value:
        value["gradient_norm"] = value["gradient_norm"].clamp_min(0.0).sqrt()
    if references.directions is not None and "gradient" in value:
        value["target_cosine"] = _cosines(
            functional.normalize(value["gradient"], dim=1), references.directions
        )
    return value


def _cosines(rows: Tensor, others: Tensor) -> Tensor:
    """(B, m) float32 of unit rows (B, d) and (m, d)."""
    with torch.autocast(rows.device.type, enabled=False):  # which would make it a product of bf16
        return rows.float() @ others.float().T
