"""`python -m coretune.playground FOLDER --rows 2000 --seed 0`: write a generated pool."""

from __future__ import annotations

import argparse
from pathlib import Path

from coretune.playground.pool import ZIPF_EXPONENT, make_pool


def main() -> None:
    """Write a generated pool."""
    parser = argparse.ArgumentParser(
        prog="python -m coretune.playground", description="Write a generated pool."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--copies", type=float, default=0.3, help="share of rows that copy another (default 0.3)"
    )
    parser.add_argument(
        "--wrong", type=float, default=0.2, help="share of rows wrongly answered (default 0.2)"
    )
    parser.add_argument(
        "--uneven", type=float, default=ZIPF_EXPONENT, help="0: all skills equally common (default 1.2)"
    )
    arguments = parser.parse_args()
    try:
        pool = make_pool(
            arguments.seed, arguments.rows, arguments.copies, arguments.wrong, uneven=arguments.uneven
        )
    except ValueError as error:
        parser.error(str(error))
    pool.write(arguments.folder)
    print(f"{arguments.rows} rows, {len(pool.held_out)} held out, in {arguments.folder}")


if __name__ == "__main__":
    main()
