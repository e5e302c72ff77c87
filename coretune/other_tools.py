"""Keys of TRL's command, Axolotl and LLaMA-Factory that have another name here, and what to write for them.

A config of one of these tools is answered in one line for all of its keys (docs/coming-from.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Key -> what to write in its place.
WRITE: Mapping[str, str] = {
    # data: TRL
    "datasets": "train_data: [{path: …}, …]",
    "dataset_name": "train_data: NAME",
    "dataset_config": "train_data: {path: NAME, name: CONFIG}",
    "dataset_train_split": "train_data: {path: NAME, split: SPLIT}",
    "dataset_test_split": "eval_data: {path: NAME, split: SPLIT}",
    "test_split_size": "eval_fraction: SHARE",
    # data: Axolotl
    "test_datasets": "eval_data: [{path: …}, …]",
    "val_set_size": "eval_fraction: SHARE",
    "dataset_prepared_path": "corpus_dir: FOLDER",
    "dataset_processes": "training.dataset_num_proc",
    "dataset_num_proc": "training.dataset_num_proc",
    "train_on_inputs": "false is what is done; for true training.completion_only_loss: false",
    "chat_template": "training.chat_template_path: a .jinja file or a tokenizer (the model's own: no key)",
    "chat_template_jinja": "training.chat_template_path: a .jinja file",
    "roles_to_train": "train_on: all",
    # data: LLaMA-Factory
    "dataset": "train_data: [FILE or hub id, …]; dataset_info.json is not read",
    "dataset_dir": "train_data: [FOLDER/FILE, …]",
    "eval_dataset": "eval_data: [FILE or hub id, …]",
    "val_size": "eval_fraction: SHARE",
    "template": "training.chat_template_path: a .jinja file or a tokenizer (the model's own: no key)",
    "default_system": "a column `system` in the data",
    "max_samples": 'train_data: {path: NAME, split: "train[:1000]"}',
    "tokenized_path": "corpus_dir: FOLDER",
    "preprocessing_num_workers": "training.dataset_num_proc",
    "mask_history": "true is what is done; for false train_on: all",
    "interleave_probs": "train_data: [{path: NAME, fraction: SHARE}, …]",
    # the model
    "base_model": "model_name_or_path",
    "base_model_config": "model_name_or_path",
    "tokenizer_config": "training.chat_template_path: a tokenizer with its tokens",
    "model_revision": "training.model_init_kwargs: {revision: …}",
    "dtype": "training.model_init_kwargs: {dtype: …}",
    "torch_dtype": "training.model_init_kwargs: {dtype: …}",
    "attn_implementation": "training.model_init_kwargs: {attn_implementation: …}",
    "flash_attention": "training.model_init_kwargs: {attn_implementation: flash_attention_2}",
    "flash_attn": "training.model_init_kwargs: {attn_implementation: …} (fa2: flash_attention_2)",
    "sdp_attention": "training.model_init_kwargs: {attn_implementation: sdpa}",
    "eager_attention": "training.model_init_kwargs: {attn_implementation: eager}",
    "rope_scaling": "training.model_init_kwargs: {rope_scaling: …}",
    "special_tokens": "training.pad_token, training.eos_token",
    "quantization_bit": "load_in_4bit: true or load_in_8bit: true",
    "quantization_method": "load_in_4bit: true or load_in_8bit: true, which are bitsandbytes'",
    "bnb_4bit_quant_type": "load_in_4bit, which is nf4; else training.model_init_kwargs.quantization_config",
    "bnb_4bit_quant_storage": "training.model_init_kwargs.quantization_config",
    "use_bnb_nested_quant": "training.model_init_kwargs.quantization_config",
    "double_quantization": "training.model_init_kwargs.quantization_config",
    # adapters
    "use_peft": "a section peft",
    "adapter": "a section peft; of qlora load_in_4bit: true too",
    "finetuning_type": "lora: a section peft; full: none",
    "lora_model_dir": "model_name_or_path: the adapter's folder or hub id, which is trained on",
    "adapter_name_or_path": "model_name_or_path: the adapter's folder or hub id, which is trained on",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "lora_alpha": "peft.lora_alpha",
    "lora_dropout": "peft.lora_dropout",
    "lora_target": "peft.target_modules (all: all-linear)",
    "lora_target_modules": "peft.target_modules",
    "lora_target_linear": "peft.target_modules: all-linear",
    "lora_target_parameters": "peft.target_parameters",
    "lora_modules_to_save": "peft.modules_to_save",
    "additional_target": "peft.modules_to_save",
    "peft_use_dora": "peft.use_dora",
    "peft_use_rslora": "peft.use_rslora",
    "use_dora": "peft.use_dora",
    "use_rslora": "peft.use_rslora",
    "pissa_init": "peft.init_lora_weights: pissa",
    "loraplus_lr_ratio": "no key: give an optimizer of your own in Python",
    # training
    "micro_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "num_epochs": "training.num_train_epochs",
    "optimizer": "training.optim",
    "lr_scheduler": "training.lr_scheduler_type",
    "warmup_ratio": "training.warmup_steps: below 1 it is a share",
    "sequence_len": "training.max_length",
    "cutoff_len": "training.max_length",
    "sample_packing": "training.packing",
    "eval_sample_packing": "rows of an evaluation are not packed: leave it out",
    "group_by_length": "training.train_sampling_strategy: group_by_length",
    "train_on_prompt": "false is what is done; for true training.completion_only_loss: false",
    "evals_per_epoch": "training.eval_strategy and eval_steps (below 1 a share of the steps)",
    "saves_per_epoch": "training.save_strategy and save_steps (below 1 a share of the steps)",
    "load_best_model": "training.load_best_model_at_end",
    "include_tokens_per_second": "the ledger has tokens and seconds: leave it out",
    "fsdp_version": "training.fsdp_config, or coretune train --accelerate_config FILE",
    "accelerate_config": "coretune train --accelerate_config FILE",
    "num_processes": "coretune train --nproc N",
    "wandb_name": "training.run_name; training.report_to: wandb",
    "wandb_project": "training.project; training.report_to: wandb",
    "enable_liger_kernel": "training.use_liger_kernel",
    "liger_fused_linear_cross_entropy": "training.use_liger_kernel",
}
#: Key -> why there is nothing to write in its place.
LEAVE: Mapping[str, str] = {
    "model_type": "AutoModelForCausalLM finds it",
    "tokenizer_type": "AutoTokenizer finds it",
    "strict": "every key is checked",
    "stage": "this is sft; preference data: docs/data.md",
    "do_train": "the command says it",
    "plot_loss": "the report has the loss",
    "overwrite_output_dir": "an output_dir holds one run; give another",
    "overwrite_cache": "tokenised rows are known by their content",
    "pad_to_sequence_len": "batches are padded to their longest row",
    "shuffle_merged_datasets": "the coreset has an order of its own",
    "dataset_streaming": "rows are chosen from a pool that is read whole",
    "streaming": "rows are chosen from a pool that is read whole",
    "ignore_bias_buffers": "no buffers are ignored",
    "lora_task_type": "causal language models are trained",
    "lora_fan_in_fan_out": "peft sets it",
    "lora_on_cpu": "peft loads it where the model is",
    "loss_watchdog_threshold": "a loss that stands out is a warning, one that is not finite stops the run",
    "loss_watchdog_patience": "a loss that stands out is a warning, one that is not finite stops the run",
    "early_stopping_patience": "give transformers' EarlyStoppingCallback in Python",
    "eval_table_size": "the section evaluate generates answers",
    "eval_max_new_tokens": "the section evaluate has max_new_tokens",
    "wandb_entity": "set WANDB_ENTITY",
    "wandb_watch": "set WANDB_WATCH",
    "wandb_log_model": "set WANDB_LOG_MODEL",
    "xformers_attention": "sdpa is the model's own",
    "s2_attention": "rows longer than max_length are cut",
    "save_safetensors": "weights are saved so",
    "dataset_exact_deduplication": "the filter duplicates, which is on",
    "plugins": "no plugins are loaded",
}
#: Key of an entry of Axolotl's `datasets` -> what to do.
OF_AN_ENTRY: Mapping[str, str] = {
    "type": "formats are recognised, leave it out",
    "ds_type": "files are recognised by their ends, leave it out",
    "conversation": "the chat template says it, leave it out",
    "chat_template": "write training.chat_template_path, or leave it out for the model's own",
    "roles": "roles are recognised, leave it out",
    "roles_to_train": "write train_on: all at the top",
    "train_on_eos": "the end of each answer is trained on, leave it out",
    "message_property_mappings": "role and content, or from and value, are recognised, leave it out",
    "message_field_role": "role and from are recognised, leave it out",
    "message_field_content": "content and value are recognised, leave it out",
    "message_field_training": "train, training and weight of a turn are read, leave it out",
    "field_messages": "write columns: {messages: …}",
    "field_instruction": "write columns: {instruction: …}",
    "field_input": "write columns: {input: …}",
    "field_output": "write columns: {output: …}",
    "field": "write columns: {text: …}",
    "revision": "give a folder of that revision",
    "shards": 'write split: "train[:10%]"',
    "preprocess_shards": "leave it out",
}


def answer(unknown: Iterable[str], training: Iterable[str]) -> str | None:
    """A line that answers the unknown keys of a config's top; None where none of them is another tool's.

    training  keys of `training`, which these tools have at the top
    """
    unknown, training = [str(key) for key in unknown], set(training)
    written = {key: WRITE[key] for key in unknown if key in WRITE}
    below = [key for key in unknown if key in training and key not in written and key not in LEAVE]
    left = {key: LEAVE[key] for key in unknown if key in LEAVE}
    others = [key for key in unknown if key not in (*written, *below, *left)]
    if not (written or left or len(below) > 1):
        return None
    parts = [f"{key} is written as {remedy}" for key, remedy in written.items()]
    parts += [f"put below training: {', '.join(below)}"] if below else []
    parts += [f"leave out {key} ({why})" for key, why in left.items()]
    parts += [f"unknown: {', '.join(others)}"] if others else []
    return f"{'; '.join(parts)} (docs/coming-from.md)"
