"""What cannot work on a coreset, said in one line before a model is loaded or a step is trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import datasets
from peft import PeftModel
from torch.utils.data import IterableDataset

from coretune.rounds.coreset_config import CoresetConfig
from coretune.rounds.sampler import EXAMPLE_ID
from coretune.types import Array

#: The first TRL whose fused output head hands out log-probabilities by token, which weights multiply.
WEIGHTS_SINCE = (1, 16)


def can_weigh(trl: str) -> bool:
    """Whether this version of TRL can train a weighted loss."""
    return tuple(int(part) for part in trl.split(".")[:2]) >= WEIGHTS_SINCE


def refuse_arguments(args: Any, weighted: bool, stock: Mapping[str, Any]) -> None:
    """ValueError for TrainingArguments, or arguments of a trainer, that a coreset contradicts."""
    refuse_unconnected_processes(args.world_size)
    if args.train_sampling_strategy not in ("random", "group_by_length"):
        raise ValueError(
            f"train_sampling_strategy is {args.train_sampling_strategy!r}, and the coreset has an order "
            "of its own; set it to random or group_by_length"
        )
    for name, why in (
        ("auto_find_batch_size", "the length of a round hangs on the batch size"),
        ("ignore_data_skip", "a resumed run would repeat rows of its round"),
    ):
        if getattr(args, name):
            raise ValueError(f"{name} does not go with a coreset, since {why}; set it to false")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name):
            raise ValueError(
                f"accelerator_config.{name} deals rows out by other rules than those a round is counted by; "
                "leave it out"
            )
    if stock.get("model_init") is not None:
        raise ValueError(
            "model_init makes the model anew in train(), and a coreset is chosen by the model it was given; "
            "give model, and for a search over settings a trainer each"
        )
    if weighted:
        _refuse_unweightable(args, stock)


def refuse_measuring(stock: Mapping[str, Any]) -> None:
    """ValueError for settings of the measurement where they were given once."""
    if "measuring" in stock:
        raise ValueError(
            'measuring is now coreset.signals: give coreset("grace", …, signals={"last_blocks": 4})'
        )


def refuse_unconnected_processes(world: int) -> None:
    """ValueError where torchrun or accelerate has started several processes and each takes itself for the
    only one: all would train on all rows, and write into the same folder."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if "LOCAL_RANK" in os.environ and started > 1 and world == 1:
        raise ValueError(
            f"{started} processes were started, and the trainer's arguments know of one: on CPUs set "
            "use_cpu=True, and make them where torchrun or accelerate launch has started the process"
        )


def _refuse_unweightable(args: Any, stock: Mapping[str, Any]) -> None:
    if stock.get("compute_loss_func") is not None:
        raise ValueError("weighted needs the stock loss; leave out compute_loss_func or set weighted: false")
    if args.label_smoothing_factor:
        raise ValueError(
            "weighted needs loss_type nll without label smoothing; change them or set weighted: false"
        )
    if args.use_liger_kernel:
        raise ValueError("weighted needs per-token losses, which Liger may hide; set weighted: false")


def refuse_sft_arguments(args: Any, weighted: bool) -> None:
    """ValueError for what an SFTConfig has beyond TrainingArguments."""
    if args.packing and args.packing_strategy == "wrapped":
        raise ValueError(
            "packing_strategy wrapped cuts examples in two, and an example is chosen whole; set it to bfd"
        )
    if args.packing and args.train_sampling_strategy == "group_by_length":
        raise ValueError("packs are all of one length already; set train_sampling_strategy to random")
    if args.packing and args.max_length is None:
        raise ValueError("packing fills packs of max_length tokens, and max_length is null; give a number")
    if not weighted:
        return
    if not can_weigh(version("trl")):
        raise ValueError(
            f"weighted needs TRL 1.16 or later, here is {version('trl')}; upgrade, or set weighted: false "
            "and leave the column `weight` out"
        )
    if args.loss_type != "nll":
        raise ValueError(
            "weighted needs loss_type nll without label smoothing; change them or set weighted: false"
        )


def online_obstacle(args: Any, own_loss: Any) -> str | None:
    """Why training steps of this SFTConfig do not show the loss of each token of each row; None: they do."""
    if own_loss is not None:
        return "online signals need the stock loss, and compute_loss_func is given"
    if args.loss_type not in ("nll", "chunked_nll") or args.label_smoothing_factor:
        return "online signals need loss_type nll without label smoothing"
    for name in ("packing", "padding_free"):
        if getattr(args, name):
            return f"online signals separate rows by their padding, and {name} is on"
    for name in ("use_liger_kernel", "torch_compile"):
        if getattr(args, name):
            return f"online signals are read off layers, which {name} may bypass"
    if not can_weigh(version("trl")):
        return f"online signals need TRL 1.16 or later, here is {version('trl')}"
    return None


def unnamed_rows(dataset: Any) -> str | None:
    """Why batches of this train_dataset do not say which rows of the pool they hold; None: they do."""
    if EXAMPLE_ID in dataset[0]:
        return None
    return f"train_dataset has no column {EXAMPLE_ID} with each row's place among `rows`"


def refuse_plain_arguments(args: Any, coreset: CoresetConfig, stock: Mapping[str, Any]) -> None:
    """ValueError for what transformers' own Trainer may leave out and a coreset needs."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process make DataParallel, which joins rows anew; start one process a "
            "GPU with accelerate launch, or set CUDA_VISIBLE_DEVICES to one"
        )
    if coreset.needs and stock.get("processing_class") is None:
        raise ValueError(
            "this method measures rows, and needs a tokenizer's padding and first token for it; give "
            "processing_class"
        )


def refuse_plain_model(model: Any, weighted: bool) -> None:
    """ValueError for a model whose own loss is more than a sum over tokens."""
    if weighted and model.config.get_text_config().to_dict().get("output_router_logits"):
        raise ValueError(
            "weighted replaces the model's own loss, which balances experts too (output_router_logits); use "
            "CoresetSFTTrainer, or set weighted: false"
        )


def refuse_first_fsdp(version: int) -> None:
    """ValueError where the trainer puts a model of its own around the one that is measured."""
    if version < 2:
        raise ValueError(
            f"fsdp_version is {version}, which puts another model around the one that is measured, so that a "
            "measurement would meet a part of its weights; set fsdp_version: 2"
        )


def refuse_frozen_model(model: Any) -> None:
    """ValueError for a model of which nothing would be trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        why = " (PeftModel.from_pretrained(…, is_trainable=True))" if isinstance(model, PeftModel) else ""
        raise ValueError(
            f"no parameter of the model requires a gradient: unfreeze what is to be trained{why}"
        )


#: Adapters that TRL's SFTTrainer (1.16) fails with at its first step: it puts an output head of its own into
#: the base model, which these do not call, or not for what they want.
NOT_OF_TRL = ("ADAPTION_PROMPT", "CPT", "SHADOW")
#: Adapters that are keys and values kept from before the row, which a recomputed block would put in twice.
KEPT_BEFORE = ("CARTRIDGE", "PREFIX_TUNING")


def refuse_adapter_of_sft(model: Any, checkpointing: bool) -> None:
    """ValueError for an adapter with which the first step of TRL's SFTTrainer would fail."""
    if not isinstance(model, PeftModel):
        return
    kind = str(getattr(model.active_peft_config.peft_type, "value", model.active_peft_config.peft_type))
    if kind in NOT_OF_TRL:
        raise ValueError(f"{kind} cannot be trained by TRL's SFTTrainer: take another adapter, as LORA")
    if kind in KEPT_BEFORE and checkpointing:
        raise ValueError(
            f"{kind} keeps keys and values from before each row, which checkpointed activations break: set "
            "gradient_checkpointing: false"
        )
    head = model.get_output_embeddings()
    if head is not None and not hasattr(head, "bias"):
        raise ValueError(
            f"the adapter wraps the output head ({type(head).__name__}), of which TRL's SFTTrainer reads the "
            "bare weight: leave out trainable_token_indices where head and embedding are one "
            "(tie_word_embeddings)"
        )


def refuse_model_of_sft(model: Any, balanced: bool) -> None:
    """ValueError for a model with which the first step of TRL's SFTTrainer (1.16) would fail.

    balanced  whether it adds the experts' balancing loss
    """
    if not can_weigh(version("trl")):  # before that the model's own head was called
        return
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "base_model", None) is base:
        raise ValueError(
            f"TRL's SFTTrainer finds no decoder in a {type(base).__name__} (base_model): use CoresetTrainer"
        )
    config = base.config.get_text_config()
    missing = [name for name in ("num_experts", "num_experts_per_tok") if not hasattr(config, name)]
    if balanced and missing:
        raise ValueError(
            f"TRL's SFTTrainer cannot balance the experts of {config.model_type}, whose config has no "
            f"{missing[0]}: set router_aux_loss_coef: 0.0"
        )


def refuse_virtual_tokens(model: Any) -> None:
    """ValueError for an adapter that is tokens of its own before each row."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        kind = type(model.active_peft_config).__name__
        raise ValueError(
            f"{kind} puts virtual tokens before each row, which a measurement does not know: train LoRA or "
            "all weights, or take a method that measures nothing, as random does"
        )


def refuse_parallelism(batch: int, expected: int) -> None:
    """ValueError when processes share rows (tensor, context, sequence parallelism): a step has fewer then."""
    if batch != expected:
        raise ValueError(
            f"a step takes {batch} rows and all processes together have {expected}: with a coreset each "
            "process takes rows of its own, so leave out tensor, context and sequence parallelism"
        )


def refuse_dataset(dataset: Any, *, with_rows: bool) -> None:
    """ValueError for a train_dataset that is not rows which can all be seen, by its own name.

    with_rows  whether the pool's rows are given beside it, so that it is only drawn from
    """
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset)) or "none"
        raise ValueError(f"train_dataset is a {kind} of the splits {names}: give one of them")
    if isinstance(dataset, (datasets.IterableDataset, IterableDataset)):
        raise ValueError(
            f"train_dataset is a stream ({kind}), and a coreset is chosen from rows that can all be seen: "
            "load it whole, as with load_dataset(…, streaming=False) or Dataset.from_generator"
        )
    if dataset is not None and not with_rows and not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"train_dataset is a {kind}: give a datasets.Dataset, as Dataset.from_list makes of a list, or "
            "the pool's tokens as `rows`"
        )
    if dataset is not None and not len(dataset):
        raise ValueError("train_dataset holds no rows: give one that does")


def refuse_rows(dataset: Any, n: int) -> None:
    """ValueError when the train_dataset and the pool's n rows are not the same rows."""
    if len(dataset) != n:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows and the pool {n}: give both of the same data"
        )


def refuse_long_rows(length: Array, pack: int) -> None:
    """ValueError for rows (n,) of more tokens than a pack holds; 0 = rows are not packed."""
    long = int((length > pack).sum())
    if pack and long:
        raise ValueError(
            f"{long} rows are longer than a pack of max_length {pack}, the longest {length.max()} tokens: "
            "raise max_length, or cut or leave out the rows"
        )


def refuse_steps(max_steps: int, warmup: int) -> None:
    """ValueError when training ends before the first selection."""
    if max_steps <= warmup:
        raise ValueError(
            f"max_steps is {max_steps} and the warm-up takes {warmup} steps, so that no coreset would be "
            "chosen: raise max_steps or lower coreset.refresh.warmup"
        )
