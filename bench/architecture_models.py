"""Tiny random models of many architectures, made from transformers' own configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, POSITIONS = 64, 64

#: What every architecture takes of this under the names that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # GPT-2, GPT-J, MPT, XGLM and others of their time
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": POSITIONS,
    "n_inner": 32,
    "rotary_dim": 4,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 2,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 32,
    "attention_heads": 2,
    "word_embed_proj_dim": 16,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # DeepSeek's attention
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # state spaces and linear attention
    "state_size": 4,
    "time_step_rank": 4,
    "attention_hidden_size": 16,
    "context_length": POSITIONS,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

#: transformers' name of the architecture -> what differs.
ARCHITECTURES: dict[str, Mapping[str, Any]] = {
    name: {}
    for name in (
        *("apertus", "arcee", "bloom", "cohere", "cohere2", "dots1"),
        *("ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "falcon_mamba", "gemma", "gemma2"),
        *("gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj"),
        *("granite", "granitemoe", "helium", "hunyuan_v1_dense", "jetmoe", "lfm2", "llama", "llama4_text"),
        *("mamba", "minimax", "mistral", "mixtral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3"),
        *("olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "xglm"),
    )
}
ARCHITECTURES |= {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "attn_layer_indices": [1]},
    "codegen": {"num_attention_heads": 4, "n_head": 4, "hidden_size": 32, "n_embd": 32},
    "deepseek_v2": {"num_key_value_heads": 2},
    "deepseek_v3": {"num_key_value_heads": 2},
    "diffllama": {"num_key_value_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
}
#: A dozen of all kinds.
QUICK = (
    *("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox"),
    *("falcon", "cohere", "mixtral", "mamba2", "rwkv", "falcon_h1"),
)


def make(name: str) -> Any:
    """A model with the same weights each time, all of them away from zero."""
    kind = CONFIG_MAPPING[name]
    known = {field for parent in kind.__mro__ for field in getattr(parent, "__annotations__", {})}
    known |= set(getattr(kind, "attribute_map", {}))
    config = kind(**{**{key: value for key, value in SIZES.items() if key in known}, **ARCHITECTURES[name]})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float()
