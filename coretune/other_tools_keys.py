"""Keys of TRL's command, Axolotl and LLaMA-Factory that have another name here, and what to write for them.

A `*` in a name matches any letters. docs/coming-from.md has the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping


def _by_key(texts: Mapping[str, str]) -> dict[str, str]:
    """Key -> text, of text -> keys."""
    return {key: text for text, keys in texts.items() for key in keys.split()}


#: Key -> what to write in its place.
WRITE: Mapping[str, str] = _by_key(
    {
        # data
        "train_data: [{path: …}, …]": "datasets",
        "train_data: NAME": "dataset_name",
        "train_data: {path: NAME, name: CONFIG}": "dataset_config",
        "train_data: {path: NAME, split: SPLIT}": "dataset_train_split",
        "eval_data: {path: NAME, split: SPLIT}": "dataset_test_split",
        "eval_data: [{path: …}, …]": "test_datasets",
        "eval_fraction: SHARE": "test_split_size val_set_size val_size",
        "train_data: [FILE or hub id, …] (dataset_info.json is not read)": "dataset",
        "train_data: [FOLDER/FILE, …]": "dataset_dir",
        "eval_data: [FILE or hub id, …]": "eval_dataset",
        "train_data, of rows with a column `text`": "pretraining_dataset",
        'train_data: {path: NAME, split: "train[:1000]"}': "max_samples",
        "train_data: [{path: NAME, fraction: SHARE}, …]": "interleave_probs",
        "concat is what is done; else train_data: [{path: NAME, fraction: SHARE}, …]": "mix_strategy",
        "corpus_dir: FOLDER": "dataset_prepared_path tokenized_path",
        "training.dataset_num_proc": "dataset_num_proc dataset_processes preprocessing_num_workers",
        "false is what is done; else training.completion_only_loss: false": "train_on_inputs train_on_prompt",
        "true is what is done; else train_on: all": "mask_history",
        "train_on: all": "roles_to_train",
        "skip_bad_rows: true, which leaves rows out whose answer does not fit": "excess_length_strategy",
        "a column `system` in the data": "default_system default_system_message",
        "a column `chat_template_kwargs` in the data": (
            "chat_template_kwargs enable_thinking preserve_thinking"
        ),
        "training.chat_template_path: a .jinja file or a tokenizer (the model's own: no key)": (
            "chat_template template"
        ),
        "training.chat_template_path: a .jinja file": "chat_template_jinja",
        "training.chat_template_path: a tokenizer with its tokens": (
            "tokenizer_config tokens add_tokens add_special_tokens added_tokens_overrides resize_vocab "
            "new_special_tokens_config resize_token_embeddings_to_32x"
        ),
        "training.pad_token, training.eos_token (others: a tokenizer as training.chat_template_path)": (
            "special_tokens"
        ),
        "training.max_length": "sequence_len cutoff_len max_seq_length model_max_length",
        "training.packing": "sample_packing",
        "training.packing: true, with attn_implementation: flash_attention_2": (
            "neat_packing max_packed_sequence_len"
        ),
        "training.padding_free": "batch_flattening",
        # the model
        "model_name_or_path": "base_model base_model_config",
        "training.model_init_kwargs: {revision: …}": "model_revision revision_of_model",
        "training.model_init_kwargs: {dtype: …}": "dtype torch_dtype",
        "training.model_init_kwargs: {dtype: bfloat16}": "pure_bf16 bfloat16",
        "training.model_init_kwargs: {dtype: float16}": "float16",
        "training.model_init_kwargs: {dtype: float32}": "float32",
        "training.model_init_kwargs: {attn_implementation: …}": "attn_implementation",
        "training.model_init_kwargs: {attn_implementation: …} (fa2: flash_attention_2)": "flash_attn",
        "training.model_init_kwargs: {attn_implementation: flash_attention_2}": (
            "flash_attention use_flash_attention_2"
        ),
        "training.model_init_kwargs: {attn_implementation: sdpa}": "sdp_attention",
        "training.model_init_kwargs: {attn_implementation: eager}": "eager_attention",
        "training.model_init_kwargs: {attn_implementation: flex_attention}": "flex_attention",
        "training.model_init_kwargs: {rope_scaling: …}": "rope_scaling",
        "training.model_init_kwargs: {device_map: …}": "device_map max_memory offload_folder",
        "training.model_init_kwargs: {experts_implementation: …}": "experts_implementation",
        "training.model_init_kwargs: {use_kernels: …}": "use_kernels",
        "training.router_aux_loss_coef": "moe_aux_loss_coef",
        "training.model_init_kwargs: {…}": (
            "overrides_of_model_kwargs overrides_of_model_config model_config low_cpu_mem_usage"
        ),
        "load_in_4bit: true or load_in_8bit: true": "quantization_bit",
        "load_in_4bit: true or load_in_8bit: true, which are bitsandbytes'": "quantization_method",
        "load_in_4bit, which is nf4; else training.model_init_kwargs.quantization_config": (
            "bnb_4bit_quant_type quantization_type"
        ),
        "training.model_init_kwargs.quantization_config": (
            "bnb_4bit_quant_storage bnb_4bit_compute_dtype bnb_config_kwargs use_bnb_nested_quant "
            "double_quantization quantization_device_map model_quantization_config*"
        ),
        # adapters
        "a section peft": "use_peft",
        "a section peft (qlora: load_in_4bit: true too)": "adapter",
        "a section peft (oft: with peft_type: OFT; full: none)": "finetuning_type",
        "model_name_or_path: the adapter's folder or hub id, which is trained on": (
            "lora_model_dir adapter_name_or_path"
        ),
        "coretune merge ADAPTER, whose model gets a section peft": "create_new_adapter",
        "peft.r": "lora_r lora_rank",
        "peft.lora_alpha": "lora_alpha",
        "peft.lora_dropout": "lora_dropout",
        "peft.target_modules": "lora_target_modules oft_target",
        "peft.target_modules, a list (all: all-linear)": "lora_target",
        "peft.target_modules: all-linear": "lora_target_linear",
        "peft.target_parameters": "lora_target_parameters",
        "peft.modules_to_save": "lora_modules_to_save additional_target",
        "peft.alpha_pattern": "lora_alpha_pattern",
        "peft.rank_pattern": "lora_rank_pattern",
        "peft.use_dora": "peft_use_dora use_dora",
        "peft.use_rslora": "peft_use_rslora use_rslora",
        "peft.init_lora_weights": "peft_init_lora_weights",
        "peft.init_lora_weights: pissa": "pissa_init",
        "peft.init_lora_weights: pissa_niter_16": "pissa_iter",
        "peft.layers_to_transform": "peft_layers_to_transform",
        "peft.layers_pattern": "peft_layers_pattern",
        "peft.layer_replication": "peft_layer_replication",
        "peft.trainable_token_indices": "peft_trainable_token_indices",
        "peft.ensure_weight_tying": "peft_ensure_weight_tying",
        "peft: {peft_type: OFT, …}": "oft_rank oft_block_size module_dropout",
        # training
        "training.per_device_train_batch_size": "micro_batch_size",
        "training.per_device_eval_batch_size": "eval_batch_size",
        "training.gradient_accumulation_steps: rows of a step / rows at once": "batch_size",
        "training.num_train_epochs": "num_epochs",
        "training.optim": "optimizer",
        "training.optim: adafactor": "adafactor",
        "training.optim: galore_adamw, with optim_target_modules and optim_args": "use_galore galore_*",
        "training.optim: apollo_adamw, with optim_target_modules and optim_args": "use_apollo apollo_*",
        "training.adam_epsilon": "adam_eps",
        "training.lr_scheduler_type": "lr_scheduler",
        "training.lr_scheduler_type: cosine_with_min_lr, with lr_scheduler_kwargs: {min_lr_rate: …}": (
            "cosine_min_lr_ratio eta_min"
        ),
        "training.warmup_steps: below 1 it is a share": "warmup_ratio",
        "training.neftune_noise_alpha": "noisy_embedding_alpha",
        "training.loss_type: dft": "use_dft_loss",
        "training.train_sampling_strategy: group_by_length": "group_by_length",
        "training.gradient_checkpointing: false": "disable_gradient_checkpointing",
        "training.gradient_checkpointing_kwargs: {use_reentrant: …}": (
            "gradient_checkpointing_use_reentrant use_reentrant_gc"
        ),
        "training.use_cpu": "no_cuda",
        "training.eval_strategy": "evaluation_strategy",
        "training.eval_strategy and eval_steps (below 1 a share of the steps)": "evals_per_epoch",
        "training.save_strategy and save_steps (below 1 a share of the steps)": "saves_per_epoch",
        "training.load_best_model_at_end": "load_best_model",
        "training.use_liger_kernel": "enable_liger_kernel liger_fused_linear_cross_entropy",
        "training.use_liger_kernel: true, with liger_kernel_config: {…}": "liger_*",
        "resume_from_checkpoint: true": "auto_resume_from_checkpoints",
        "the section evaluate": (
            "compute_accuracy predict_with_generate generate_samples num_generation_samples generation_* "
            "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split "
            "eval_num_beams"
        ),
        # trackers, launch
        "training.report_to: wandb": "use_wandb",
        "training.report_to: tensorboard": "use_tensorboard",
        "training.report_to: mlflow": "use_mlflow",
        "training.report_to: comet_ml": "use_comet",
        "training.report_to: trackio": "use_trackio",
        "training.report_to: swanlab": "use_swanlab",
        "training.run_name": (
            "wandb_name trackio_run_name mlflow_run_name swanlab_run_name swanlab_experiment_name"
        ),
        "training.project": "wandb_project trackio_project_name",
        "training.fsdp_config, or coretune train --accelerate_config FILE": "fsdp_version fsdp_*",
        "coretune train --accelerate_config FILE": "accelerate_config",
        "coretune train --nproc N": "num_processes ddp world_size",
        "variables of the shell: NAME=VALUE coretune train …": "env",
    }
)
#: Key -> why there is nothing to write in its place.
LEAVE: Mapping[str, str] = _by_key(
    {
        "this is sft; preference data: docs/data.md": (
            "stage rl rl_beta trl dpo_* kto_* orpo_* cpo_* simpo_* rpo_* ppo_* pref_* ld_alpha ref_model* "
            "reward_model* process_reward_model center_rewards_coefficient precompute_ref_log_probs "
            "max_prompt_len num_labels cls_model_config ebft diffusion"
        ),
        "texts alone are trained on": (
            "image_* video_* audio_* media_dir processor_type processor_kwargs crop_to_patches "
            "use_audio_in_video freeze_mm_modules freeze_vision_tower freeze_multi_modal_projector "
            "freeze_language_model"
        ),
        "nothing is generated while training; coretune chat RUN": (
            "do_sample temperature top_k top_p num_beams max_new_tokens repetition_penalty length_penalty "
            "skip_special_tokens infer_backend infer_dtype use_kv_cache vllm* sglang_* gradio_*"
        ),
        "coretune merge RUN writes the merged model": (
            "export_* merge_lora merge_method pissa_convert nvfp4_merge_aware adapter_folder"
        ),
        "give an optimizer of your own in Python": (
            "loraplus_lr_ratio loraplus_lr_embedding embedding_lr embedding_lr_scale lr_groups use_badam "
            "badam_* use_adam_mini use_muon dion_* qgalore_* adam_beta3 adam_epsilon2"
        ),
        "give a scheduler of your own in Python": (
            "cosine_constant_lr_ratio lr_quadratic_warmup lr_div_factor jagged_restart_*"
        ),
        "all weights are trained, or an adapter's; freeze others in Python": (
            "unfrozen_parameters freeze_trainable_layers freeze_trainable_modules freeze_extra_modules "
            "use_llama_pro lisa_* relora*"
        ),
        "training.loss_type has nll and dft": "use_eaft* eaft_* use_asft_loss asft_alpha",
        "rows are tokenised and kept here": (
            "skip_prepare_dataset dataset_kwargs dataset_keep_in_memory dataset_shard_idx dataset_shard_num "
            "num_dataset_shards_to_save data_shared_file_system preprocessing_batch_size preprocess_iterable "
            "is_preprocess push_dataset_to_hub buffer_size streaming_multipack_buffer_size "
            "axolotl_config_path"
        ),
        "the coreset has an order of its own": (
            "shuffle_merged_datasets shuffle_before_merging_datasets shuffle_dataset disable_shuffling "
            "curriculum_sampling sample_packing_sequentially"
        ),
        "packs are filled by TRL": (
            "sample_packing_* multipack_real_batches pretrain_multipack_* pretraining_sample_concatenation "
            "total_num_tokens total_supervised_tokens block_diag_attn"
        ),
        "rows of an evaluation are not packed": "eval_sample_packing eval_packing",
        "rows of an evaluation have training.max_length": "eval_sequence_len",
        "evaluation data is scored together; the report has losses by source": "eval_on_each_dataset",
        "prompts are cut from the left, responses never": "truncation_mode",
        "short rows are kept": "min_sample_len",
        "the end of each answer is trained on": "eot_tokens",
        "padding is never trained on": "ignore_pad_token_for_loss",
        "the chat template says it": "tool_format role_boundaries",
        "rows are chosen from a pool that is read whole": "dataset_streaming streaming",
        "the command says it": "do_train do_predict",
        "eval_data and eval_strategy say it": "do_eval",
        "texts are read from the column `text`, else columns: {text: …}": "dataset_text_field",
        "AutoModelForCausalLM finds it": "model_type type_of_model is_*_derived_model",
        "AutoTokenizer finds it": (
            "tokenizer_type use_fast_tokenizer tokenizer_use_fast tokenizer_legacy "
            "tokenizer_use_mistral_common tokenizer_save_jinja_files split_special_tokens"
        ),
        "every key is checked": "strict",
        "the report has the loss": "plot_loss",
        "the ledger has tokens and seconds": (
            "include_tokens_per_second include_tkps include_effective_tokens_per_second"
        ),
        "coretune plan says what is trained": "print_param_status",
        "an output_dir holds one run; give another": "overwrite_output_dir",
        "tokenised rows are known by their content": "overwrite_cache",
        "batches are padded to their longest row": "pad_to_sequence_len",
        "no buffers are ignored": "ignore_bias_buffers",
        "causal language models are trained": "lora_task_type",
        "peft sets it": "lora_fan_in_fan_out peft_autocast_adapter_dtype",
        "peft loads it where the model is": "lora_on_cpu",
        "layers and weights are as transformers has them": (
            "lora_*_kernel *_kernels fused_attn_kernel use_unsloth* use_kt kt_* tiled_mlp* "
            "chunked_cross_entropy* cut_cross_entropy flash_attn_* "
            "flash_optimum sage_attention sdpa_varlen xformers_attention s2_attention shift_attn "
            "gemma4_hybrid_attn_impl large_head_attention scaling_softmax* mixture_of_depths "
            "use_scattermoe use_sonicmoe use_onebitllms llama4_linearized_experts quantize_moe_experts "
            "reinit_weights train_from_scratch init_special_tokens mean_resizing_embeddings "
            "shrink_embeddings fix_untrained_tokens use_pose pose_* torchdistx_path selective_checkpointing "
            "experimental_skip_move_to_device trainer_cls llmcompressor"
        ),
        "dtypes are the model's and training's": (
            "upcast_layernorm upcast_lmhead_output embeddings_skip_upcast fp32_norms fp32_norm_classes "
            "compute_dtype fp8 fp8_* mixed_precision"
        ),
        "few bits are bitsandbytes'": "gptq gptq_* qat quantization",
        "each process takes rows of its own; coretune train --nproc N": (
            "*_parallel_size *_parallel_degree dp_shard_size dp_replicate_size ring_attn_func heads_k_stride "
            "sequence_parallel use_ray ray_* resources_per_worker master_addr master_port use_mca "
            "use_megatron_bridge megatron_* overlap_* moe_* apply_rope_fusion bias_activation_fusion "
            "use_distributed_optimizer use_packed_sequences recompute_granularity "
            "use_hyper_parallel hyper_parallel_* qlora_sharded_model_loading"
        ),
        "the trainer places and compiles the model": (
            "device gpu_memory_limit layer_offloading deepcompile torch_compile_options "
            "flex_attn_compile_kwargs"
        ),
        "a loss that stands out is a warning, one that is not finite stops the run": "loss_watchdog_*",
        "give transformers' EarlyStoppingCallback in Python": "early_stopping_patience early_stopping_steps",
        "give a callback of your own in Python": (
            "save_first_step gc_steps gc_collect_steps profiler_* profile_modules enable_torch_profiler "
            "dynamic_checkpoint"
        ),
        "the section evaluate generates answers": "eval_table_size",
        "the section evaluate has max_new_tokens": "eval_max_new_tokens",
        "set HF_TOKEN": "hf_hub_token hf_use_auth_token ms_hub_token om_hub_token",
        "set HF_HOME": "cache_dir",
        "set the tracker's variable of that name, as WANDB_ENTITY": (
            "wandb_* mlflow_* hf_mlflow_log_artifacts comet_* swanlab_* use_otel_metrics otel_*"
        ),
        "weights are saved so": "save_safetensors",
        "the filter duplicates, which is on": "dataset_exact_deduplication",
        "no plugins are loaded": "plugins",
        "transformers has it no more": (
            "fp16_backend fp16_opt_level half_precision_backend jit_mode_eval use_ipex use_mps_device "
            "tpu_num_cores tpu_metrics_debug past_index mp_parameters ray_scope torchdynamo logging_dir"
        ),
    }
)
#: Key of an entry of Axolotl's `datasets` -> what to write.
WRITE_IN_AN_ENTRY: Mapping[str, str] = _by_key(
    {
        "training.chat_template_path (the model's own: no key)": "chat_template chat_template_jinja",
        "train_on: all at the top": "roles_to_train",
        "columns: {messages: …}": "field_messages",
        "columns: {instruction: …}": "field_instruction",
        "columns: {input: …}": "field_input",
        "columns: {output: …}": "field_output",
        "columns: {prompt: …}": "field_human",
        "columns: {completion: …}": "field_model field_chosen",
        "columns: {tools: …}": "field_tools",
        "columns: {system: …}": "field_system",
        "columns: {text: …}": "field",
        "path: the folder of that revision": "revision",
        'split: "train[:10%]"': "shards shards_idx",
        "training.trust_remote_code": "trust_remote_code",
    }
)
LEAVE_IN_AN_ENTRY: Mapping[str, str] = _by_key(
    {
        "formats are recognised": "type ds_type input_format format conversation preprocess_shards",
        "roles, contents and flags of turns are recognised": (
            "roles message_property_mappings message_field_role message_field_content message_field_training"
        ),
        "train, training and weight of a whole turn are read": "message_field_training_detail",
        "the end of each answer is trained on": "train_on_eos train_on_eot",
        "the chat template says it": (
            "drop_system_message field_thinking template_thinking_key split_thinking"
        ),
        "labels alone are learnt, no probabilities": "logprobs_field temperature",
        "this is sft": "field_rejected",
        "rows are read as they are": "input_transform",
    }
)
