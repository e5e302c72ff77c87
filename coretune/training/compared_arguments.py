"""Which arguments of a trainer decide what is learnt, as text: two runs that differ in one are two runs.

An argument that no list below names decides, so that a new version's argument is compared before anybody has
thought of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import FunctionType
from typing import Any

#: How the names of training arguments begin that change nothing in what is learnt.
WITHOUT_EFFECT = (
    "output_dir",
    "run_name",
    "project",
    "trackio_",
    "report_to",
    "disable_tqdm",
    "debug",
    "skip_memory_metrics",
    "log",
    "eval_",
    "per_device_eval",
    "prediction_loss_only",
    "include_",
    "batch_eval",
    "save_",
    "hub_",
    "push_",
    "load_best",
    "metric_for",
    "greater_is",
    "resume_from",
    "do_",
    "dataloader_",
    "dataset_num_proc",
    "ddp_timeout",
    "local_rank",
    "model_init_kwargs",  # may hold a token; what they make of the model is compared itself
    "trust_remote_code",
)
#: Those that change it by rounding alone, or what becomes of it in the end.
MAY_DIFFER = (
    "activation_",
    "gradient_checkpointing",
    "torch_compile",
    "torch_empty_cache",
    "use_liger",
    "liger_",
    "use_cache",
    "use_cpu",
    "tf32",
    "bf16_full_eval",
    "fp16_full_eval",
    "full_determinism",
    "fsdp",
    "deepspeed",
    "accelerator_config",
    "parallelism_config",
    "ddp_",
    "remove_unused",
    "enable_jit",
    "restore_callback",
)
#: Compared by rules of their own: a checkpoint goes on with other batches, and with more steps.
COUNTED = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs")
#: Of those that are not learnt from, what decides which weights a run ends with.
_KEPT = ("load_best", "metric_for", "greater_is")


def decisive(args: Any) -> dict[str, str]:
    """Argument -> value as JSON, of all that decide what is learnt."""
    return {
        f"training.{name}": json.dumps(value, default=str)
        for name, value in args.to_dict().items()
        if not name.startswith(WITHOUT_EFFECT)
    }


def compared(args: Any, stock: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What has to be the same in a run that goes on, and what may differ and is named.

    stock   what the trainer was given beside its arguments (see `described`)
    """
    given = decisive(args)
    around = {name: value for name, value in given.items() if _bare(name).startswith(MAY_DIFFER)}
    strict = {name: v for name, v in given.items() if name not in around and _bare(name) not in COUNTED}
    for name, value in args.to_dict().items():
        if name.startswith(_KEPT):
            around[f"training.{name}"] = json.dumps(value, default=str)
    around["training.device"] = args.device.type
    return {**strict, **{name: described(value) for name, value in stock.items()}}, around


def described(value: Any) -> str:
    """A collator, a loss, an optimiser's class and settings by their names: code has no fingerprint."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(described, value))
    if isinstance(value, (type, FunctionType)):
        return value.__qualname__
    if hasattr(value, "param_groups") and hasattr(value, "defaults"):  # an optimizer: its settings, not state
        return f"{type(value).__qualname__} {json.dumps(value.defaults, default=str, sort_keys=True)}"
    return json.dumps(value, default=lambda other: type(other).__qualname__)


def _bare(name: str) -> str:
    return name.removeprefix("training.")
