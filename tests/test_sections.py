"""Every key of `training` and `peft` is honoured or refused by name; none is taken and left without
effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from run_configs import TRAINING, config
from section_config import made
from tiny_run import model_folder, records, trainer, write_jsonl
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTConfig

from coretune import run
from coretune.config import ConfigError, load_config
from coretune.coreset_section import coreset
from coretune.measure.settings import MeasureSettings
from coretune.stock_fields import ELSEWHERE
from coretune.training.adapter_names import refuse_unmatched
from coretune.training.refusals import refuse_arguments, refuse_sft_arguments
from coretune.training.sections import (
    PEFT_REFUSED,
    PEFT_TYPES_REFUSED,
    SFT_KEYS,
    adapter_config,
    training_arguments,
)

TOP = ("output_dir", "seed", "resume_from_checkpoint")


# ------------------------------------------------------------------------------------------ `training`

#: A value other than the default; what is not named here has one by its kind.
OTHER: dict[str, Any] = {
    "accelerator_config": {"split_batches": True},
    "activation_checkpointing": False,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "chat_template_path": "other.jinja",
    "dataloader_multiprocessing_context": "spawn",
    "dataset_kwargs": {"append_concat_token": False},
    "ddp_backend": None,
    "do_eval": False,
    "do_train": False,
    "debug": "underflow_overflow",
    "deepspeed": None,
    "fsdp": None,
    "fsdp_config": None,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "hub_revision": "dev",
    "hub_strategy": "end",
    "include_for_metrics": ["inputs"],
    "include_num_input_tokens_seen": "all",
    "liger_kernel_config": {"rope": False},
    "load_best_model_at_end": None,
    "log_level": "error",
    "log_level_replica": "error",
    "loss_type": "dft",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "lr_scheduler_type": "cosine",
    "max_length": 17,
    "model_init_kwargs": {"revision": "main"},
    "optim": "adafactor",
    "optim_args": "a=1",
    "optim_target_modules": ["q_proj"],
    "packing_strategy": "bfd_split",
    "pad_to_multiple_of": 8,
    "parallelism_config": {"dp_replicate_size": 2},
    "remove_unused_columns": False,
    "report_to": "tensorboard",
    "tf32": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    "trackio_static_space_id": "a/b",
    "train_sampling_strategy": "sequential",
    "truncation_mode": "keep_end",
    "use_cpu": True,
}
STRATEGIES = ("eval_strategy", "logging_strategy", "save_strategy")


def other(field: Any) -> Any:
    """A value that is not the field's default."""
    if field.name in OTHER:
        return OTHER[field.name]
    if field.name in STRATEGIES:
        return "epoch"
    if isinstance(field.default, bool) or "bool" in str(field.type):
        return not field.default
    if isinstance(field.default, int | float) or "int" in str(field.type) or "float" in str(field.type):
        return type(field.default or 0)(3)
    return "other"


def refusal(build: Callable[[], object]) -> str | None:
    """What it is refused with; None where it is not."""
    try:
        build()
    except ValueError as error:
        return str(error)
    return None


def build_arguments(name: str, value: Any) -> None:
    args = training_arguments(made({name: value}))
    refuse_arguments(args, False, {})
    refuse_sft_arguments(args, False)


@pytest.mark.parametrize("field", fields(SFTConfig), ids=lambda field: field.name)
def test_every_key_of_training_is_honoured_or_refused_by_name(field: Any) -> None:
    name, value = field.name, other(field)
    if name not in TOP and value is None:
        return  # needs more than a value: an accelerator, a launcher; the stock trainer reads it
    said = refusal(lambda: build_arguments(name, value))
    answer = "given" if said is None else "refused"
    assert said is None or (name in said and "\n" not in said)
    ours = name not in TrainingArguments.__dataclass_fields__
    if name in TOP or name in ELSEWHERE:
        assert answer == "refused"
    elif ours:
        assert (answer == "given") == (name in SFT_KEYS)
        assert not (name in SFT_KEYS and name in ELSEWHERE)
    if answer == "given" and name not in ("assistant_only_loss", "completion_only_loss"):
        got = getattr(training_arguments(made({name: value})), name)
        assert got == value or str(got) == str(value) or str(value) in str(got)


def test_a_key_that_a_later_trl_adds_is_refused_until_it_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coretune.training.sections.SFT_KEYS", SFT_KEYS - {"padding_free"})
    with pytest.raises(ConfigError, match=r"training.padding_free is True, and rows are prepared without it"):
        training_arguments(made({"padding_free": True}))
    training_arguments(made({"padding_free": False}))


@pytest.mark.parametrize(
    "name", ["model_init_kwargs", "lr_scheduler_kwargs", "activation_checkpointing_kwargs"]
)
def test_a_text_in_the_place_of_a_mapping_is_refused_unless_it_is_json(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name} is a text that is no JSON object"):
        training_arguments(made({name: "fast"}))
    assert getattr(training_arguments(made({name: '{"a": 1}'})), name) == {"a": 1}


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_is_done_anyway_may_be_said(name: str) -> None:
    for value in ELSEWHERE[name][0]:
        if value is not None:
            training_arguments(made({name: value}))


@pytest.mark.parametrize("name", [*STRATEGIES, "report_to"])
def test_no_is_taken_as_no(tmp_path: Path, name: str) -> None:
    args = training_arguments(made({name: False}))
    assert getattr(args, name) in ("no", [])
    path = tmp_path / "config.yaml"
    text = json.dumps(made().model_dump(exclude_none=True))
    path.write_text(text.replace('"bf16"', f'"{name}": no, "bf16"'), encoding="utf-8")
    assert load_config(path).training[name] in ("no", "none")


def test_data_seed_is_the_seed_of_what_is_drawn() -> None:
    assert made(seed=3).coreset_seed == 3
    assert made({"data_seed": 5}, seed=3).coreset_seed == 5


# ---------------------------------------------------------------------------------------------- `peft`

PEFT_OTHER: dict[str, Any] = {
    "alora_invocation_tokens": [5],
    "bias": "all",
    "ensure_weight_tying": True,
    "exclude_modules": ["o_proj"],
    "init_lora_weights": "gaussian",
    "kasa_config": {},
    "layer_replication": [[0, 2]],
    "layers_pattern": "layers",
    "layers_to_transform": [0],
    "loftq_config": {"loftq_bits": 4},
    "modules_to_save": ["lm_head"],
    "monteclora_config": {},
    "peft_type": "IA3",
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "runtime_config": {"ephemeral_gpu_offload": True},
    "target_modules": ["q_proj"],
    "target_parameters": ["weight"],
    "task_type": "SEQ_CLS",
    "trainable_token_indices": [1],
    "use_bdlora": {},
    "velora_config": {},
    "eva_config": {"rho": 1.0},
    "corda_config": {},
    "lora_ga_config": {},
    "arrow_config": {"top_k": 1},
    "auto_mapping": {"a": "b"},
    "megatron_config": {"a": 1},
}


@pytest.mark.parametrize("field", fields(peft.LoraConfig), ids=lambda field: field.name)
def test_every_key_of_peft_is_honoured_or_refused_by_name(field: Any) -> None:
    name = field.name
    value = PEFT_OTHER.get(name, other(field))
    section = {name: value, **({"layers_to_transform": [0]} if name == "layers_pattern" else {})}
    if said := refusal(lambda: adapter_config(made(peft=section))):
        assert name in said
        assert "\n" not in said
        return
    adapter: Any = adapter_config(made(peft=section))
    assert name not in PEFT_REFUSED
    got = getattr(adapter, name)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    assert got != default
    if not isinstance(value, dict):
        assert (sorted(got) == sorted(value)) if isinstance(value, list) else str(value) in str(got)


def test_a_mapping_becomes_the_config_that_peft_wants() -> None:
    adapter = adapter_config(made(peft={"runtime_config": {"ephemeral_gpu_offload": True}}))
    assert adapter.runtime_config.ephemeral_gpu_offload is True
    with pytest.raises(ConfigError, match=r"unknown key peft\.runtime_config\.offload"):
        adapter_config(made(peft={"runtime_config": {"offload": True}}))


@pytest.mark.parametrize("kind", sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_type_of_adapter_is_made_or_refused_by_name(kind: str) -> None:
    config = made(peft={"peft_type": kind.lower()})
    if said := refusal(lambda: adapter_config(config)):
        assert (
            kind.lower() in said
            if kind in PEFT_TYPES_REFUSED
            else said.startswith(("peft: ", "peft.num_virtual_tokens"))
        )
        return
    adapter = adapter_config(config)
    assert kind not in PEFT_TYPES_REFUSED
    assert type(adapter) is PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"peft_type": "LORRA"}, "peft.peft_type is 'LORRA', did you mean 'LORA'"),
        ({"peft_type": "IA3", "r": 8}, "unknown key peft.r"),
        (
            {"peft_type": "ADALORA"},
            "peft.peft_type is 'ADALORA', and its ranks change by calls after each step",
        ),
        ({"peft_type": "VERA", "r": "eight"}, "peft.r is 'eight': give a whole number"),
        ({"peft_type": "LOHA", "alpha": [8]}, r"peft.alpha is \[8\]: give a whole number"),
        ({"peft_type": "IA3", "feedforward_modules": 5}, "peft.feedforward_modules is 5: give text"),
        ({"peft_type": "OFT", "target_modules": 3}, "peft.target_modules is 3: give text"),
        ({"peft_type": "TRAINABLE_TOKENS", "token_indices": 3}, "peft.token_indices is 3: give a list"),
        ({"inference_mode": True}, "peft.inference_mode is True, .*nothing would be trained"),
        ({"init_lora_weights": "eva"}, "peft.init_lora_weights is 'eva', which needs statistics"),
        ({"task_type": "SEQ_CLS"}, "peft.task_type is 'SEQ_CLS', and causal language models are trained"),
        ({"loftq_config": {"loftq_bits": 4}}, "peft: `loftq_config` specified but will be ignored"),
    ],
)
def test_an_adapter_that_would_be_another_is_refused(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        adapter_config(made(peft=section))


def test_an_adapter_of_another_type_is_the_one_that_is_trained(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", records(12))
    top = {"coreset": {"method": "random", "budget": "50%"}, "eval_data": None}
    training = {**TRAINING, "max_steps": 2, "save_strategy": "no"}
    section = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    trainer = run.build_trainer(config(tmp_path, tmp_path / "run", training=training, peft=section, **top))
    assert trainer.model.peft_config["default"].peft_type == peft.PeftType.IA3
    trained = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert trained
    assert all("ia3" in name for name in trained)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"peft_type": "CPT", "num_virtual_tokens": 4}, "CPT cannot be trained by TRL's SFTTrainer"),
        (
            {"peft_type": "ADAPTION_PROMPT", "adapter_len": 4, "adapter_layers": 1},
            "ADAPTION_PROMPT cannot be trained by TRL's SFTTrainer",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4},
            "PREFIX_TUNING keeps keys .* set gradient_checkpointing: false",
        ),
        (
            {"peft_type": "CARTRIDGE", "num_virtual_tokens": 4},
            "CARTRIDGE keeps keys .* set gradient_checkpointing: false",
        ),
        ({"peft_type": "SHADOW"}, "SHADOW cannot be trained by TRL's SFTTrainer"),
        ({"trainable_token_indices": [1]}, "wraps the output head .*TrainableTokensWrapper.*leave out train"),
        ({"target_parameters": ["nope"]}, "peft.target_parameters has 'nope', which nothing in the model"),
        ({"peft_type": "PREFIX_TUNING"}, "peft.num_virtual_tokens is missing, and PREFIX_TUNING needs it"),
        ({"peft_type": "cartridge"}, "peft.num_virtual_tokens is missing, and CARTRIDGE needs it"),
    ],
)
def test_an_adapter_that_the_first_step_would_fail_with_is_refused_before(
    tmp_path: Path, section: dict[str, Any], says: str
) -> None:
    write_jsonl(tmp_path / "pool.jsonl", records(12))
    top = {"coreset": {"method": "random", "budget": "50%"}, "eval_data": None}
    with pytest.raises(ValueError, match=says):
        run.build_trainer(config(tmp_path, tmp_path / "run", peft=section, **top))


NAMES = [
    {"modules_to_save": ["lm_head", "nope"]},
    {"target_parameters": ["nope"]},
    {"target_modules": ["q_proj", "nope"]},
    {"exclude_modules": ["nope"]},
    {"rank_pattern": {"q_proj": 2, "nope": 4}},
    {"alpha_pattern": {"nope": 4}},
    {"peft_type": "IA3", "target_modules": ["k_proj", "nope"], "feedforward_modules": []},
]


@pytest.fixture(scope="module")
def adapted() -> Any:
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            target_modules=["q_proj"], target_parameters=["mlp.down_proj.weight"], modules_to_save=["lm_head"]
        ),
    )


@pytest.mark.parametrize("section", [*NAMES, {"layers_to_transform": [0, 7]}], ids=str)
def test_a_name_of_the_adapter_that_nothing_has_is_refused(adapted: Any, section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has '(nope|7)', which nothing in the model is called"):
        refuse_unmatched(adapted, section)


def test_names_of_the_adapter_that_the_model_has_pass(adapted: Any) -> None:
    there = {
        "target_modules": ["q_proj", "self_attn.v_proj"],
        "target_parameters": ["mlp.down_proj.weight"],
        "modules_to_save": ["lm_head", "embed_tokens"],
        "rank_pattern": {"q_proj": 2, r"^model.layers.0.*_proj": 4},
        "layers_to_transform": 1,
    }
    refuse_unmatched(adapted, there)
    refuse_unmatched(adapted, {"target_modules": "all-linear", "exclude_modules": ".*nope"})
    refuse_unmatched(adapted.get_base_model(), {})


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="peft leaves no parameter to train"):
        run._refuse_frozen(torch.nn.Linear(2, 2).requires_grad_(False))


# ----------------------------------------------------------------------------------- the seed in Python


@pytest.mark.parametrize(
    ("own", "given", "seed"),
    [({}, {"seed": 3}, 3), ({}, {"seed": 3, "data_seed": 5}, 5), ({"seed": 0}, {"seed": 3}, 0), ({}, {}, 42)],
)
def test_the_coreset_takes_the_trainers_seed_unless_it_has_its_own(
    tmp_path: Path, own: dict[str, int], given: dict[str, int], seed: int
) -> None:
    asked = coreset("loss", budget="25%", refresh={"k": 4}, **own)
    made = trainer(tmp_path, asked, **given)
    assert (made.coreset_config.seed, made.signals.settings.seed) == (seed, seed)
    assert type(made.coreset_config.seed) is int


def test_a_measurement_with_a_seed_of_its_own_keeps_it(tmp_path: Path) -> None:
    asked = coreset("loss", budget="25%", refresh={"k": 4})
    made = trainer(tmp_path, replace(asked, signals=MeasureSettings(seed=0)), seed=3)
    assert (made.coreset_config.seed, made.signals.settings.seed) == (3, 0)
