"""A connection to Ray, kept for one selection: to a cluster, or to a local Ray that is started for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("coretune")


@contextmanager
def connected(address: str | None) -> Iterator[int]:
    """Inside, Ray answers; the number of workers its CPUs allow is given.

    address  of a running cluster ("auto", "10.0.0.1:6379", "ray://…"); None: a Ray of this machine's cores is
             started, and stopped afterwards. Where this process is connected already, that connection is used
             and left as it is.

    ValueError: Ray is not installed; no cluster at the address, or one without a CPU.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            "engine ray needs Ray, which is not installed: pip install 'coretune[ray]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home by default
        try:
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no Ray cluster at ray_address {address!r}: {reason}") from None
    try:
        workers = int(ray.cluster_resources().get("CPU", 0))
        if workers < 1:
            raise ValueError(f"the Ray cluster at {address!r} has no CPU to work with; add nodes to it")
        log.info("Ray: %d workers %s", workers, f"at {address}" if address else "of this machine")
        yield workers
    finally:
        if ours:
            ray.shutdown()
