"""The settings of a measurement. Free of torch, so that a configuration can be read without it."""

from __future__ import annotations

from dataclasses import dataclass

from coretune.choices import refuse_other
from coretune.types import TRAINERS_SEED

SEEDED = ("rademacher", "sjlt")  # bases that are drawn, not fitted
BASES = (*SEEDED, "gradient_pca", "parameter_pca")


@dataclass(frozen=True)
class MeasureSettings:
    """How signals are measured.

    Attributes:
        last_blocks: Gradients count the parameters of so many last transformer blocks; None = all.
        parameters: "adapter_or_attention": LoRA's A and B, or else the attention output projections.
            "trainable": every parameter that requires a gradient, in those blocks; with None anywhere.
        projection_dim: Dimension of `gradient` and of `head_gradient`.
        factor_dim: A side of a weight longer than this is projected to it first (`project.py`).
        basis: What gradients are projected with. "rademacher": sides cut by Rademacher matrices, then a
            sparse sketch. "sjlt": that sketch alone, of the whole gradient. "gradient_pca" and
            "parameter_pca" (`bases.py`): in `trajectory`; other signals as with rademacher.
        preconditioner: "none", "adam" or "linear": applied to gradients before they are projected
            (`precondition.py`). The last two need an optimiser's moments.
        batch_tokens: Padded tokens in a batch at most.
        autocast: Name of a dtype ("bfloat16") to run the model in. None: its own, or the caller's autocast.
        seed: Of the projections; TRAINERS_SEED = that of the coreset.
    """

    last_blocks: int | None = 2
    parameters: str = "adapter_or_attention"
    projection_dim: int = 512
    factor_dim: int = 128
    basis: str = "rademacher"
    preconditioner: str = "none"
    batch_tokens: int = 4096
    autocast: str | None = None
    seed: int = TRAINERS_SEED

    def __post_init__(self) -> None:
        for name in ("projection_dim", "factor_dim", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.last_blocks is not None and self.last_blocks < 1:
            raise ValueError(
                f"last_blocks is {self.last_blocks}; it must be at least 1, or null for all blocks"
            )
        refuse_other("autocast", self.autocast, (None, "bfloat16", "float16"))
        refuse_other("basis", self.basis, BASES)
        refuse_other("preconditioner", self.preconditioner, ("none", "adam", "linear"))
        refuse_other("parameters", self.parameters, ("adapter_or_attention", "trainable"))
