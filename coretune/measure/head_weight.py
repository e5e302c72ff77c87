"""The output head's own weight as a parameter that counts, also where an embedding shares it.

∂ℓ_i/∂W = Σ_t (p_t − y_t) h_tᵀ has the size of the vocabulary times the width for each example: it is worked
out in blocks of the vocabulary, p anew for each block from the normaliser of one pass over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coretune.measure.batches import Batch
from coretune.measure.forms import Form, Lookup, Part, Vector
from coretune.measure.head import CHUNK_ENTRIES, scatter
from coretune.measure.hooks import Chosen, Reader
from coretune.measure.logits import LogitRule
from coretune.measure.project import DENSE_ENTRIES, MatrixProjection, Sketch


@dataclass(frozen=True)
class HeadWeight:
    """G_i = Σ_t error_t state_tᵀ (+ the tied embedding's share), of shape (vocabulary, d).

    state       (R, d) float32           last hidden states that predict response tokens, row after row
    where       (B, T) bool              their places
    target      (R,) int64
    share       (R,) float32             1 / response tokens of the row
    weight      (vocabulary, d) float32
    bias        (vocabulary,) float32 | None
    rule        how the model makes logits of W h + b
    normaliser  (R,) float32             log Σ_v exp logit_v
    lookup      the tied embedding's gradient, or None
    """

    state: Tensor
    where: Tensor
    target: Tensor
    share: Tensor
    weight: Tensor
    bias: Tensor | None
    rule: LogitRule
    normaliser: Tensor
    lookup: Lookup | None

    def logits(self, block: slice) -> Tensor:
        """(R, block) float32."""
        values = self.state @ self.weight[block].mT
        return self.rule(values if self.bias is None else values + self.bias[block])

    def error(self, block: slice) -> Tensor:
        """(R, block) float32: share · (p − y) · ∂logits/∂(W h + b) over a block of the vocabulary."""
        logits = self.logits(block)
        error = (logits - self.normaliser[:, None]).exp_()
        inside = ((self.target >= block.start) & (self.target < block.stop)).nonzero()[:, 0]
        error[inside, self.target[inside] - block.start] -= 1.0
        return error.mul_(self.share[:, None]).mul_(self.rule.slope(logits))

    def blocks(self) -> Iterator[slice]:
        """Of the vocabulary: no more than a chunk of logits, and than DENSE_ENTRIES of a row's gradient."""
        vocabulary, width = self.weight.shape
        step = max(1, min(CHUNK_ENTRIES // max(1, len(self.state)), DENSE_ENTRIES // width))
        for begin in range(0, vocabulary, step):
            yield slice(begin, min(begin + step, vocabulary))

    def square_norm(self) -> Tensor:
        """Direct, row by row, block by block: T · vocabulary · d multiplications, as the head's own pass."""
        norm = torch.zeros(len(self.where), device=self.state.device)
        for rows, _, gradient in self.dense():
            norm[rows] += gradient.square().sum((1, 2))
        return norm

    def project(self, projection: MatrixProjection | Sketch, total: Tensor) -> None:
        assert isinstance(projection, MatrixProjection)
        if projection.left is None:
            for rows, block, gradient in self.dense():
                projection.add_part(total[rows], block, gradient)
            return
        left = torch.stack([self.error(block) @ projection.left[block] for block in self.blocks()]).sum(0)
        projection.add_to(total, scatter(left, self.where), scatter(self.state, self.where))
        if self.lookup is not None:
            self.lookup.project(projection, total)

    def dense(self) -> Iterator[Part]:
        row = self.where.nonzero()[:, 0]
        for block in self.blocks():
            error = self.error(block)
            for i in range(len(self.where)):
                gradient = error[row == i].mT @ self.state[row == i]
                if self.lookup is not None:
                    ids = self.lookup.ids[i]
                    inside = (ids >= block.start) & (ids < block.stop)
                    gradient.index_add_(0, ids[inside] - block.start, self.lookup.right[i][inside])
                yield slice(i, i + 1), block, gradient[None]

    def bias_gradient(self) -> Vector:
        """(B, vocabulary): Σ_t error_t."""
        row = self.where.nonzero()[:, 0]
        whole = self.state.new_zeros(len(self.where), len(self.weight))
        for block in self.blocks():
            whole[:, block].index_add_(0, row, self.error(block))
        return Vector(whole)


def read_head(
    head: Chosen,
    hidden: Tensor,
    batch: Batch,
    tied: Mapping[str, Form],
    readers: Sequence[Reader],
    rule: LogitRule,
) -> None:
    """Gives the readers the gradients of the head's own parameters; `hidden` (B, T, d) is detached."""
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        weight = _head_weight(head, hidden, batch, tied, rule)
        for local, name in head.parameters.items():
            form: Form = weight if local == "weight" else weight.bias_gradient()
            for read in readers:
                read(name, form)


def _head_weight(
    head: Chosen, hidden: Tensor, batch: Batch, tied: Mapping[str, Form], rule: LogitRule
) -> HeadWeight:
    response = batch.response_mask()
    where = response.roll(-1, 1)
    layer = head.layer
    assert isinstance(layer, torch.nn.Linear)
    state = hidden[where].float()
    weight = layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float()
    share = (1.0 / response.sum(1).float())[where.nonzero()[:, 0]]
    lookup = tied.get(head.parameters.get("weight", ""))
    assert lookup is None or isinstance(lookup, Lookup)
    form = HeadWeight(
        state, where, batch.labels[response], share, weight, bias, rule, torch.zeros_like(share), lookup
    )
    normaliser = torch.full_like(share, -torch.inf)
    for block in form.blocks():
        normaliser = torch.logaddexp(normaliser, form.logits(block).logsumexp(1))
    return replace(form, normaliser=normaliser)
