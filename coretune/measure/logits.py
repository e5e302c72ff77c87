"""What a model makes of its output head's values: scaled, then capped.

    z = W h + b      logits = c tanh(s z / c)      ∂logits/∂z = s (1 − (logits / c)²)      c = ∞: logits = s z

Gemma and its kin cap [Gemma 2, arXiv:2408.00118], Cohere, Granite, Falcon-H1 and others scale. Read from the
model's configuration, by the names that transformers (5.20 and later) gives the two; that nothing else is
done behind the head `passes.check_head` finds out on the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CAPS = ("final_logit_softcapping", "logits_soft_cap")
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
DIVISOR = "logits_scaling"  # HyperCLOVA X alone multiplies by it
MULTIPLIED = ("hyperclovax",)


@dataclass(frozen=True)
class LogitRule:
    """s and c of the formula above; c = None: no cap."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> LogitRule:
        known = model.config.get_text_config().to_dict()
        scale = next((known[name] for name in FACTORS if known.get(name) is not None), None)
        if scale is None and (given := known.get(DIVISOR)) is not None:
            scale = given if known["model_type"] in MULTIPLIED else 1 / given
        cap = next((known[name] for name in CAPS if known.get(name) is not None), None)
        return cls(1.0 if scale is None else float(scale), None if cap is None else float(cap))

    def __call__(self, values: Tensor) -> Tensor:
        """Logits, of the shape and dtype of the head's values."""
        scaled = values if self.scale == 1 else values * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def slope(self, logits: Tensor) -> Tensor | float:
        """∂logits/∂z, one number where it is the same everywhere."""
        return self.scale if self.cap is None else self.scale * (1 - (logits / self.cap).square())
