"""`coretune train --nproc 2`: the processes of a run, started by accelerate's launcher, which is torchrun's.

accelerate (1.15) starts one process for its MULTI_CPU, or needs MPI; its launcher of several GPUs starts
several without one too. So that one is taken for CPUs, where `training.use_cpu` makes them ranks of one run.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretune.stock_fields import package_folder
from coretune.yaml_text import ConfigError, read_file

PREDEFINED = "accelerate_configs"  # folder of TRL's own: multi_gpu, zero2, fsdp2, …
STARTED = "LOCAL_RANK"  # in the environment of every process that a launcher has started
ELASTIC = "torch.distributed.elastic"


def launch(command: Sequence[str], processes: int | None, config: str | None, on_cpu: bool) -> int:
    """Run `python -m coretune *command` in several processes; the exit code of the first one that failed.

    A process that a signal ended counts as a shell counts it: 128 and the signal's number.

    Args:
        command: What follows `coretune`.
        processes: How many; None: as many as the file says.
        config: accelerate's configuration, a file or the name of one of TRL's; None: plain data parallelism.
        on_cpu: Whether the run uses no device though the machine has one.

    Raises:
        ConfigError: No such file, more processes than devices, or a launcher started this process already.
    """
    if STARTED in os.environ:
        raise ConfigError(
            "a launcher (torchrun, accelerate) has started this process: leave out --nproc and "
            "--accelerate_config"
        )
    path = None if config is None else _resolved(config)
    settings = {} if path is None else _settings(path)
    arguments = _arguments(processes, path, settings)
    _refuse_too_many(processes, on_cpu or settings.get("use_cpu") is True)
    return _run([*arguments, "--module", "coretune", *command])


def _resolved(config: str) -> Path:
    """The file, or TRL's file of that name."""
    if Path(config).expanduser().is_file():
        return Path(config).expanduser()
    folder = package_folder("trl") / PREDEFINED
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if config not in known:
        raise ConfigError(
            f"--accelerate_config is {config}: there is no such file, and TRL has {', '.join(known)} alone"
        )
    return folder / f"{config}.yaml"


def _settings(path: Path) -> Mapping[str, Any]:
    read = read_file(path)
    if not isinstance(read, dict):
        raise ConfigError(f"{path} holds no settings: give a file that `accelerate config` writes")
    return read


def _arguments(processes: int | None, path: Path | None, settings: Mapping[str, Any]) -> list[str]:
    """For accelerate's launcher, before the script."""
    kind = str(settings.get("distributed_type", "MULTI_CPU")).upper()
    found = [] if path is None else ["--config_file", str(path)]
    if kind == "MULTI_CPU" or (kind == "NO" and (processes or 1) > 1):
        found.append("--multi_gpu")
    if processes is not None:
        found += ["--num_processes", str(processes)]
    if path is None:
        found += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if settings.get("main_process_port") is None and settings.get("num_machines", 1) == 1:
        found += ["--main_process_port", "0"]  # a free one: two runs on a machine do not meet
    return found


def _refuse_too_many(processes: int | None, on_cpu: bool) -> None:
    import torch

    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if devices and not on_cpu and (processes or 1) > devices:
        raise ConfigError(
            f"--nproc is {processes}, and the machine has {devices} devices: give at most as many, or set "
            "training.use_cpu=true"
        )


def _run(arguments: Sequence[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger(ELASTIC).setLevel(logging.CRITICAL)  # each process has said what is wrong with it
    try:
        launch_command(launch_command_parser().parse_args(list(arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"coretune: process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        return _as_shell(failure.exitcode)
    except subprocess.CalledProcessError as error:
        return _as_shell(error.returncode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code
