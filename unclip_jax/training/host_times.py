"""Waiting times of all processes, so that a host whose data come late is named.

A step is as slow as its slowest process, and the others wait on their devices. Metrics are those of
process 0, which does not show it.
"""

import logging
import socket
import statistics
from collections.abc import Callable
from typing import Any

import jax

from unclip_jax.parallel.multihost import gather

log = logging.getLogger(__name__)

_SHARE = 0.1  # of a step that a process may wait for its data
_RATIO = 2.0  # to the median of all processes, above which a process is named


class HostTimes:
    """Compares the times that processes waited for their data.

    A host that keeps the others waiting is logged by name once, until another one does.
    """

    def __init__(self, *, exchange: Callable[[Any], list[Any]] = gather):
        """Takes a function that returns the values of all processes in their order."""
        self._exchange, self._named = exchange, ""

    def __call__(self, wait: float, seconds: float) -> dict[str, float]:
        """Exchanges the waiting times of a window of steps; all processes call it.

        Args:
            wait: mean seconds per step that this process waited.
            seconds: per step; 0 = unknown.

        Returns:
            The longest waiting time as `data_seconds_max`; nothing of one process.
        """
        waits = self._exchange([socket.gethostname(), wait])
        if len(waits) == 1:
            return {}
        times = [time for _, time in waits]
        longest, median = max(times), statistics.median(times)
        index = times.index(longest)
        name = f"process {index} on {waits[index][0]}"
        late = longest > _SHARE * seconds > 0 and longest > _RATIO * median
        if late and name != self._named and jax.process_index() == 0:
            log.warning(
                "all processes wait for %s, which waits %.3g of %.3g s per step for its data (the "
                "median process: %.3g s); look at that host, or raise config.data.workers",
                name,
                longest,
                seconds,
                median,
            )
        self._named = name if late else ""
        return {"data_seconds_max": longest}
