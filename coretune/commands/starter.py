"""The text of a first config: every line of it with what it says, and only keys that a newcomer changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from coretune.yaml_text import write

SCHEMA = "coretune.schema.json"  # beside the config
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LORA_RATE, FULL_RATE = "2.0e-4", "2.0e-5"  # [choice] what adapters and whole models are usually trained with

TEXT = """\
# yaml-language-server: $schema={schema}
#
#   coretune preview {file}    rows as the model will see them
#   coretune plan {file}       what the run will cost
#   coretune train {file}      the run

model_name_or_path: {model}    # a folder or a hub id
train_data: {data}    # json, jsonl, csv, parquet, arrow, a folder of them, or a hub id
{eval_data}    # held-out rows; or eval_fraction: 0.05, a share of train_data
output_dir: {output}
seed: 0

coreset:
  method: grace    # who chooses; `random` is the baseline (docs/methods.md); all settings: docs/settings.md
  budget: {budget}    # of the rows; or a number of rows (600), or of tokens (2M tokens)
  refresh_every: pass    # a new coreset after each pass over the last; or steps (50), or never

training:    # any field of trl.SFTConfig
  num_train_epochs: 10    # passes over the coreset; max_steps counts steps
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 2
  learning_rate: {rate}
  lr_scheduler_type: cosine
  warmup_steps: 20
  max_length: 1024    # tokens; longer prompts are cut from the left
  logging_steps: 10
  save_strategy: epoch    # an epoch here is a round: as long as one coreset is trained on
  save_total_limit: 2
  report_to: none    # wandb, trackio, tensorboard, mlflow
{peft}"""
PEFT = """
peft:    # any field of peft.LoraConfig; without this section the whole model is trained
  r: 16
  lora_alpha: 32
  lora_dropout: 0.05
  target_modules: all-linear
"""


@dataclass(frozen=True)
class Starter:
    """What a first config is made for.

    full     the whole model is trained, no adapter
    adapter  the model is an adapter, which is trained on
    """

    model: str
    data: str
    output: str
    eval_data: str | None = None
    budget: str = "10%"
    full: bool = False
    adapter: bool = False

    def text(self, file: Path) -> str:
        """For a config of this name, with the schema beside it."""
        return TEXT.format(
            schema=SCHEMA,
            file=file,
            model=_scalar(self.model),
            data=_scalar(self.data),
            eval_data=f"eval_data: {_scalar(self.eval_data)}"
            if self.eval_data
            else "# eval_data: eval.jsonl",
            output=_scalar(self.output),
            budget=_scalar(int(self.budget) if self.budget.isdecimal() else self.budget),
            rate=FULL_RATE if self.full else LORA_RATE,
            peft="" if self.full or self.adapter else PEFT,
        )


def _scalar(value: object) -> str:
    """As YAML writes it, on one line."""
    text = write({"key": value}).removeprefix("key:").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in text or "\\" in text else text
