"""Architectures without a FLOP formula: trained, measured, planned, compared; FLOPs said to be unknown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measure_oracle import BOS, PAD, random_rows
from run_configs import raw_config
from tiny_run import coreset_config, corpus, model_folder, records, trainer, write_jsonl
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from coretune import run
from coretune.comparing.compare_command import run_comparison
from coretune.config import RunConfig, check_config
from coretune.ledger import Cost, Ledger, table_of
from coretune.measure.settings import MeasureSettings
from coretune.measure.signals import measurer
from coretune.planning import plan
from coretune.probing.probe import make_plan
from coretune.recording.run_files import LEDGER
from coretune.training.model_cost import ModelCost, has_formulas

TINY = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2}
MODELS = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**TINY, state_size=4)),
    "falcon_mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**TINY, state_size=4)),
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(**TINY, attention_hidden_size=16, context_length=96)),
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return MODELS[kind]()


@pytest.mark.parametrize(
    ("kind", "method"), [("falcon_mamba", "grace"), ("rwkv", "grace"), ("rwkv", "random")]
)
def test_it_is_trained_and_the_ledger_says_that_flops_are_unknown(
    tmp_path: Path, kind: str, method: str
) -> None:
    done = trainer(
        tmp_path, coreset_config(method), model=made(kind), eval_dataset=corpus(12, 1).dataset, max_steps=2
    )
    done.train()
    done.evaluate()
    costs = done.ledger.by_phase()
    for phase in ("training", "evaluation", *(["measurement"] if method == "grace" else [])):
        assert costs[phase].tokens > 0
        assert costs[phase].flops is None
    assert done.ledger.table()[-1][-1] == "unknown"
    assert not any("cost/flops" in line for line in done.state.log_history)


def test_a_mixers_output_is_read_as_attentions_is() -> None:
    model, rows = made("mamba"), random_rows(4, seed=1)
    measure = measurer(model, rows, ["gradient_norm"], MeasureSettings(), pad_token_id=PAD, bos_token_id=BOS)
    leaves = [p for name, p in model.named_parameters() if "mixer.out_proj" in name]
    expected = []
    model.eval()
    for tokens, labels in zip(rows.token_rows, rows.label_rows, strict=True):
        ids, targets = torch.from_numpy(tokens).long()[None], torch.from_numpy(labels)[None]
        gradients = torch.autograd.grad(model(input_ids=ids, labels=targets).loss, leaves)
        expected.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
    np.testing.assert_allclose(measure(np.arange(4))["gradient_norm"], expected, rtol=1e-4)


def test_hybrids_have_no_formula_and_transformers_have() -> None:
    hybrid = FalconH1Config(
        **TINY,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        mamba_d_ssm=16,
        mamba_n_heads=4,
    )
    assert not has_formulas(FalconH1ForCausalLM(hybrid))
    assert has_formulas(AutoModelForCausalLM.from_pretrained(model_folder()))
    estimate = ModelCost.of(made("mamba"), corpus(), ["loss"], MeasureSettings(), None, False)
    assert not estimate.counted
    assert estimate.training(np.arange(4)) > estimate.measurement(np.arange(4)) > 0  # for seconds


def test_a_ledger_that_counts_none_says_so_of_every_phase_that_tokens_pass() -> None:
    ledger = Ledger(clock=lambda: 0.0, counts_flops=False)
    ledger.add("training", tokens=5, flops=7.0)
    with ledger.phase("measurement", flops=3.0), ledger.phase("graph"):
        pass
    assert ledger.by_phase()["training"] == Cost(tokens=5, flops=None)
    assert ledger.by_phase()["measurement"].flops is None
    assert ledger.by_phase()["graph"].flops == 0


# -------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("mamba")
    made("mamba").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "pool.jsonl", records(24))
    write_jsonl(folder / "eval.jsonl", records(6, seed=1))
    raw = raw_config(folder, folder / "run", model_name_or_path=str(folder / "model"))
    raw["coreset"] = {"method": "loss", "budget": "25%", "refresh_every": 2, "refresh": {"warmup": 0, "k": 4}}
    raw["training"] = {**raw["training"], "max_steps": 4, "save_strategy": "no", "max_length": 64}
    return check_config({name: value for name, value in raw.items() if name != "peft"})


def test_a_run_its_page_and_its_plan_say_unknown(settings: RunConfig) -> None:
    planned = make_plan(settings)
    assert table_of(planned.phases)[-1][-1] == "unknown"
    assert plan.verdict(planned)[0].startswith("FLOPs are unknown, for there is no formula")
    assert planned.total.seconds > 0
    plan.write(planned, settings.output_dir)
    done = run.train(settings, on_step=lambda: None)
    folder = Path(settings.output_dir)
    ledger = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    assert ledger["total"]["flops"] is None
    assert ledger["predicted"]["total"]["flops"] is None
    assert "FLOPs" not in run.against_plan(done)
    page = next(folder.rglob("report.html")).read_text(encoding="utf-8")
    assert "<td>unknown</td>" in page


def test_arms_are_compared_at_equal_steps_alone(settings: RunConfig, tmp_path: Path) -> None:
    found = run_comparison(settings, ["random", "loss"], 1, tmp_path, 1, True, bars=False)
    (table,) = found["tables"]
    place = table["header"].index("FLOPs")
    assert [line[place] for line in table["rows"]] == ["unknown", "unknown"]
    assert found["results"][0]["flops"] is None
    json.dumps(found, allow_nan=False)
