"""What grants access stays out of what a run writes."""

from __future__ import annotations

import json

import pytest

from coretune.config import check_config
from coretune.planning.workload import about_run
from coretune.secrets import is_secret, without_secrets

TOKEN = "hf_" + "x" * 34


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hub_token",
        "use_auth_token",
        "access_token",
        "HF_TOKEN",
        "api_key",
        "wandb-api-key",
        "password",
        "client_secret",
        "aws_secret_access_key",
        "credentials",
        "hub.api.token",
        "authorization",
        "clientSecret",
        "hfToken",
        "wandbApiKey",
        "access_tokens",
        "bearer_token",
        "oauth_token",
        "id_token",
        "sas-token",
        "auth",
        "db_pwd",
        "jwt",
    ],
)
def test_keys_that_grant_access_are_taken_out_at_any_depth(key: str) -> None:
    assert is_secret(key)
    assert without_secrets({"a": {"b": [{key: "s3cret", "kept": 1}]}}) == {"a": {"b": [{"kept": 1}]}}


@pytest.mark.parametrize(
    "key",
    [
        "eos_token",
        "pad_token",
        "max_new_tokens",
        "batch_tokens",
        "trainable_token_indices",
        "tokenizer",
        "key_mapping",
        "include_num_input_tokens_seen",
        "length_column_name",
        "alora_invocation_tokens",
        "bos_token",
        "image_token",
        "decoder_start_token_id",
        "num_virtual_tokens",
        "flops_per_token",
        "author",
    ],
)
def test_keys_that_only_sound_so_stay(key: str) -> None:
    assert without_secrets({key: "value"}) == {key: "value"}


def test_a_mapping_written_as_json_is_searched() -> None:
    text = json.dumps({"token": TOKEN, "torch_dtype": "bfloat16"})
    assert json.loads(without_secrets(text)) == {"torch_dtype": "bfloat16"}
    assert without_secrets('{"a":  1}') == '{"a":  1}'


def test_tokens_and_passwords_within_texts_are_hidden() -> None:
    assert without_secrets([f"run {TOKEN}"]) == ["run (hidden)"]
    assert without_secrets("https://me:pa55@host/x") == "https://host/x"
    assert without_secrets("https://t0ken@host/x") == "https://host/x"
    assert (
        without_secrets("https://host/x?access_token=abc&rows=3")
        == "https://host/x?access_token=(hidden)&rows=3"
    )
    assert without_secrets({TOKEN: "glpat-" + "x" * 20}) == {"(hidden)": "(hidden)"}
    assert without_secrets(["AKIAIOSFODNN7EXAMPLE", "Bearer abcdefgh123"]) == ["(hidden)", "Bearer (hidden)"]
    assert without_secrets('[{"api_key": "x"}, 1]') == "[{}, 1]"
    assert without_secrets("runs/hf_small") == "runs/hf_small"


def test_what_a_plan_says_of_its_run_holds_no_token() -> None:
    training = {
        "max_steps": 3,
        "hub_token": "s3cret",
        "model_init_kwargs": {"token": "s3cret", "dtype": "auto"},
    }
    coreset = {"method": "random", "budget": 3}
    raw = {"model_name_or_path": "m", "train_data": "p.jsonl", "output_dir": "o", "coreset": coreset}
    about = about_run(check_config({**raw, "training": training}))
    assert "s3cret" not in json.dumps(about)
    assert about["training"] == {"max_steps": 3, "model_init_kwargs": {"dtype": "auto"}}
