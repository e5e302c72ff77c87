"""A stock SFTTrainer script with one argument more.

    python examples/train.py                                        one process
    torchrun --nproc_per_node 2 examples/train.py                   two, on GPUs or CPUs
    accelerate launch --config_file examples/accelerate/ddp_cpu.yaml examples/train.py
    python examples/train.py --resume                               goes on from the newest whole checkpoint

Without arguments it trains the tiny model that comes with coretune on a generated pool: a minute on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, load_dataset
from trl import SFTConfig

from coretune import CoresetSFTTrainer, coreset
from coretune.playground import BASE_MODEL, make_pool


def as_turns(record: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Prompt and completion as turns of a conversation, for the tokenizer's chat template."""
    return {
        "prompt": [{"role": "user", "content": record["prompt"]}],
        "completion": [{"role": "assistant", "content": record["completion"]}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(BASE_MODEL))
    parser.add_argument("--data", help="a jsonl file of prompt and completion; default: a generated pool")
    parser.add_argument("--output-dir", default="runs/example")
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    if options.data:
        rows = load_dataset("json", data_files=options.data, split="train")
    else:
        rows = Dataset.from_list([as_turns(record) for record in make_pool(seed=0, rows=600).records])

    trainer = CoresetSFTTrainer(
        model=options.model,
        args=SFTConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            bf16=torch.accelerator.is_available(),  # as examples/accelerate asks for
            use_cpu=not torch.accelerator.is_available(),  # else processes on CPUs do not find together
            save_steps=20,
            logging_steps=20,
            report_to="none",
        ),
        train_dataset=rows.select_columns(["prompt", "completion"]),
        coreset=coreset("grace", budget="10%"),
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model()


if __name__ == "__main__":
    main()
