"""Run a training script as accelerate's configurations for devices ask for, on this machine's CPUs.

    accelerate launch --config_file examples/accelerate/fsdp.yaml bench/on_cpus.py examples/train.py …

The script is as it is; its SFTConfig alone does not ask for CPUs, which to accelerate are no devices.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import trl
from ways import FSDP, ZERO, as_devices


def main(script: str) -> None:
    split = {"ACCELERATE_USE_FSDP": FSDP, "ACCELERATE_USE_DEEPSPEED": ZERO}
    ways = [way for name, kind in split.items() if name in os.environ for way in kind]
    stock = trl.SFTConfig

    def on_devices(**given: Any) -> Any:
        return stock(**{**given, "use_cpu": False})

    if ways:
        as_devices(ways[0])  # alike for all of a kind
        trl.SFTConfig = on_devices
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
