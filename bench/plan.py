"""Does `coretune plan` tell what a run will cost? Planned, then run: the plan against the ledger.

    python bench/plan.py --quick                # the playground: random and GRACE
    python bench/plan.py --pool FOLDER --model FOLDER --methods random,grace,less --steps 200
    python bench/plan.py --check                # exit 1 names every total that is off by more than 25 %

Seconds are of processor time with one thread, in the plan and in the run alike, so that a machine that is
busy with other things gives the figures of an idle one; --wall takes the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from command import parser_of, quiet, tell_missed
from cost_row import LORA, MICRO
from pools import pool_and_model

WITHIN = 0.25
METHODS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "grace": {"method": "grace"},
    "grace:priority": {"method": "grace", "refresh": {"anchors": "priority"}},
    "less": {"method": "less"},
    "loss": {"method": "loss", "refresh": {"anchors": "all"}},
    "craig": {"method": "craig", "refresh_every": "never"},
    "brief": {"method": "brief", "refresh_every": "never"},
    "gtp": {"method": "gtp", "refresh_every": "never"},
}


def config_of(args: argparse.Namespace, pool: Path, model: str, out: Path, method: str) -> Any:
    from coretune.config import check_config

    target = pool / "target.jsonl"
    return check_config(
        {
            "model_name_or_path": model,
            "train_data": str(pool / "pool.jsonl"),
            "eval_data": str(pool / "eval.jsonl"),
            "target_data": str(target) if target.exists() else None,
            "output_dir": str(out),
            "skip_bad_rows": True,
            "coreset": {"budget": "10%", "refresh_every": args.every, **METHODS[method]},
            "peft": dict(LORA) if args.lora else None,
            "training": {
                "max_steps": args.steps,
                "per_device_train_batch_size": MICRO if args.lora else 16,
                "gradient_accumulation_steps": 16 // MICRO if args.lora else 1,
                "learning_rate": 1e-3,
                "bf16": args.lora,
                "model_init_kwargs": {"attn_implementation": "eager"} if args.lora else None,
                "gradient_checkpointing": False,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
            },
        }
    )


def plan_and_run(config: Any, clock: Any) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The plan and the ledger as JSON, and the seconds that planning took."""
    from transformers import PrinterCallback

    from coretune import run
    from coretune.probing.probe import make_plan

    began = time.perf_counter()
    plan = make_plan(config, clock)
    took = time.perf_counter() - began
    trainer = run.build_trainer(config)
    trainer.remove_callback(PrinterCallback)
    trainer.ledger.clock = clock
    trainer.train()
    if config.evaluated:
        trainer.evaluate()
    return json.loads(json.dumps(plan.to_dict())), trainer.ledger.to_dict(), took


def rows_of(method: str, plan: dict[str, Any], was: dict[str, Any]) -> list[tuple[str, ...]]:
    def line(name: str, said: dict[str, Any], done: dict[str, Any]) -> tuple[str, ...]:
        off = f"{said['seconds'] / done['seconds'] - 1:+.0%}" if done["seconds"] > 0.05 else "-"
        flops = [f"{x['flops']:.2e}" if x["flops"] else "-" for x in (said, done)]
        cells = (f"{said['seconds']:.1f}", f"{done['seconds']:.1f}", off, *flops)
        return (name, *cells, f"{said['rows']:,}", f"{done['rows']:,}")

    phases = [n for n, c in was["phases"].items() if c["seconds"] > 0.05]
    found = [line(f"{method} {name}", plan["phases"][name], was["phases"][name]) for name in phases]
    return [*found, line(f"{method} total", plan["total"], was["total"])]


def missed(predicted: Mapping[str, Any], actual: Mapping[str, Any], within: float) -> list[str]:
    """Where the totals differ by more than that share of the outcome: one line each."""
    found = []
    for name in ("seconds", "flops", "rows", "tokens"):
        said, was = predicted["total"][name], actual["total"][name]
        if was and said is not None and abs(said - was) > within * was:
            found.append(f"{name}: {said:.4g} was predicted, it was {was:.4g} ({said / was - 1:+.0%})")
    return found


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--pool", help="folder with pool.jsonl and eval.jsonl; left out, the playground's")
    parser.add_argument("--model", help="model folder; left out, the playground's")
    parser.add_argument("--methods", default="random,grace", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between selections")
    parser.add_argument("--lora", action="store_true", help="LoRA in bfloat16, as bench/cost.py trains")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock on the wall")
    parser.add_argument("--quick", action="store_true", help="60 steps")
    parser.add_argument("--check", action="store_true", help=f"exit 1 where a total is off by {WITHIN:.0%}")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.quick:
        args.steps = 60

    from coretune.console import print_table
    from coretune.playground import BASE_MODEL

    quiet()
    misses, table = (
        [],
        [("phase", "plan s", "s", "off", "plan FLOPs", "FLOPs", "plan rows", "rows")],
    )
    with tempfile.TemporaryDirectory() as folder:
        found, _ = pool_and_model(args.pool or "made:rows=2000", args.model, folder, Path(folder))
        pool = Path(found)
        for number, method in enumerate(args.methods.split(",")):
            config = config_of(args, pool, args.model or str(BASE_MODEL), Path(folder) / str(number), method)
            clock = time.perf_counter if args.wall else time.process_time
            plan, was, took = plan_and_run(config, clock)
            table += rows_of(method, plan, was)
            misses += [f"{method}: {miss}" for miss in missed(plan, was, WITHIN)]
            print(f"{method}: planning took {took:.0f} s", file=sys.stderr)
    name = platform.processor() or platform.machine()
    seconds = "wall" if args.wall else "processor"
    print_table(
        f"{pool.name}, {args.steps} steps of 16; {seconds} seconds, 1 thread; {name}, {os.cpu_count()} cores",
        table,
    )
    return tell_missed(misses, args.check)


if __name__ == "__main__":
    sys.exit(main())
