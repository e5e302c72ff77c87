"""Frozen weights of 4 or 8 bits under an adapter, by bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from coretune.config import ConfigError, RunConfig


def quantization(config: RunConfig, args: Any) -> dict[str, Any] | None:
    """What transformers reads as a BitsAndBytesConfig; None for weights as they are. 4 bits are nf4, as in
    QLoRA and in TRL's command.

    args  of the trainer, which say the dtype that is computed in
    """
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    name = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if config.load_in_8bit and (config.peft or {}).get("use_dora") and not torch.accelerator.is_available():
        raise ConfigError(
            "peft.use_dora fails at the second pass over 8-bit weights on a CPU (bitsandbytes 0.50): take "
            "load_in_4bit"
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f'{name} needs bitsandbytes: pip install "coretune[quantization]"')
    if config.load_in_8bit:
        return {"quant_method": "bitsandbytes", name: True}
    dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    return {
        "quant_method": "bitsandbytes",
        name: True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
    }


def keep_trainable(model: Any) -> None:
    """Have 4-bit layers on a CPU stay as they are.

    On CPUs with AVX512-BF16 bitsandbytes (0.50) packs a layer's weight anew at its first pass in evaluation
    mode, for good, and through a packed one no gradient comes back: a run that was measured or evaluated once
    would train its last layers alone.
    """
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False
