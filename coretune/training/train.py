"""The trainers: those of transformers and TRL, unmodified, on a changing coreset (see `mixin.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from trl import SFTTrainer

from coretune.rounds.coreset_config import CoresetConfig
from coretune.training.adapter_loading import trained_on
from coretune.training.mixin import CoresetMixin
from coretune.training.refusals import (
    online_obstacle,
    refuse_adapter_of_sft,
    refuse_model_of_sft,
    refuse_plain_arguments,
    refuse_plain_model,
    refuse_sft_arguments,
)
from coretune.training.weighting import weighing, weighted_loss

__all__ = ["CoresetSFTTrainer", "CoresetTrainer"]


class CoresetTrainer(CoresetMixin):
    """transformers' Trainer on a coreset of a causal language model's rows; arguments as in `CoresetMixin`.

    train_dataset holds input_ids and labels (IGNORED where the loss does not count), and data_collator makes
    of n rows a batch of n rows in their order.
    """

    def __init__(self, model: Any = None, args: Any = None, **settings: Any) -> None:
        super().__init__(model, args, **settings)
        refuse_plain_model(self.model, self._weighs)

    def _refuse(self, args: Any, coreset: CoresetConfig, stock: Mapping[str, Any]) -> None:
        super()._refuse(args, coreset, stock)
        refuse_plain_arguments(args, coreset, stock)

    def _weighted_loss(
        self, model: Any, inputs: dict[str, Any], weights: torch.Tensor, return_outputs: bool, items: Any
    ) -> Any:
        """Divided and scaled as `Trainer.compute_loss` divides and scales the model's own loss."""
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = weighted_loss(outputs.logits, labels, weights, items)
        if self.args.average_tokens_across_devices and items is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss


class CoresetSFTTrainer(CoresetMixin, SFTTrainer):
    """TRL's SFTTrainer on a coreset; arguments as in `CoresetMixin`."""

    stock = SFTTrainer

    def __init__(self, model: Any = None, args: Any = None, **settings: Any) -> None:
        super().__init__(model, args, **settings)
        refuse_adapter_of_sft(self.model, self.args.gradient_checkpointing)
        refuse_model_of_sft(self.model, getattr(self, "aux_loss_enabled", False))

    def _loaded(self, model: Any, args: Any) -> tuple[Any, Any]:
        return trained_on(model, args)

    def _refuse(self, args: Any, coreset: CoresetConfig, stock: Mapping[str, Any]) -> None:
        super()._refuse(args, coreset, stock)
        refuse_sft_arguments(args, coreset.weighted)

    @staticmethod
    def online_obstacle(args: Any, own_loss: Any) -> str | None:
        """Why training steps show no signals; None where they do."""
        return online_obstacle(args, own_loss)

    def _pack_tokens(self) -> int:
        return int(self.args.max_length) if self.args.packing else 0

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        """Private in TRL (1.16): prepares each dataset by name. Rows are packed after they were chosen."""
        packing = packing and dataset_name != "train"
        return super()._prepare_dataset(
            dataset, processing_class, args, packing, formatting_func, dataset_name
        )

    def _weighted_loss(
        self, model: Any, inputs: dict[str, Any], weights: torch.Tensor, return_outputs: bool, items: Any
    ) -> Any:
        return SFTTrainer.compute_loss(self, weighing(model, weights), inputs, return_outputs, items)
