"""What cannot work on a coreset, said in one line before a model is loaded or a step is trained."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

#: The first TRL whose fused output head hands out log-probabilities by token, which weights multiply.
WEIGHTS_SINCE = (1, 16)


def can_weigh(trl: str) -> bool:
    """Whether this version of TRL can train a weighted loss."""
    return tuple(int(part) for part in trl.split(".")[:2]) >= WEIGHTS_SINCE


def refuse_arguments(args: Any, weighted: bool, loss_function: Any = None) -> None:
    """ValueError for stock arguments (SFTConfig, compute_loss_func) that a coreset contradicts."""
    if args.packing or args.padding_free:
        raise ValueError(
            "packing and padding_free join rows, so that rows cannot be selected; set both to false"
        )
    if args.world_size > 1:
        raise ValueError(f"one process is supported so far, and {args.world_size} were started")
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"train_sampling_strategy is {args.train_sampling_strategy!r}, and the coreset has an order "
            "of its own; leave it at random"
        )
    for name, why in (
        ("auto_find_batch_size", "the length of a round hangs on the batch size"),
        ("ignore_data_skip", "a resumed run would repeat rows of its round"),
    ):
        if getattr(args, name):
            raise ValueError(f"{name} does not go with a coreset, since {why}; set it to false")
    if weighted:
        _refuse_unweightable(args, loss_function)


def _refuse_unweightable(args: Any, loss_function: Any) -> None:
    if loss_function is not None:
        raise ValueError("weighted needs the stock loss; leave out compute_loss_func or set weighted: false")
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise ValueError(
            "weighted needs loss_type nll without label smoothing; change them or set weighted: false"
        )
    if args.use_liger_kernel:
        raise ValueError("weighted needs per-token losses, which Liger may hide; set weighted: false")
    if not can_weigh(version("trl")):
        raise ValueError(
            f"weighted needs TRL 1.16 or later, here is {version('trl')}; upgrade or set weighted: false"
        )


def refuse_rows(dataset: Any, n: int) -> None:
    """ValueError when the train_dataset and the pool's n rows are not the same rows."""
    try:
        examples = len(dataset)
    except TypeError:
        raise ValueError(
            "train_dataset is a stream, and a coreset is chosen from rows that can all be seen: load it whole"
        ) from None
    if examples != n:
        raise ValueError(f"train_dataset has {examples} rows and the pool {n}: give both of the same data")


def refuse_steps(max_steps: int, warmup: int) -> None:
    """ValueError when training ends before the first selection."""
    if max_steps <= warmup:
        raise ValueError(
            f"max_steps is {max_steps} and the warm-up takes {warmup} steps, so that no coreset would be "
            "chosen: raise max_steps or lower coreset.warmup"
        )
