"""Times of all processes, to name a host that delays the others.

A step takes equally long on all processes, because they wait for each other on their devices. They
differ in how long each waits for its data and for its devices. A process that waits for neither is
working on its host, and the longest such time delays all.
"""

import json
import logging
import pathlib
import socket
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from unclip_jax.core.files import atomic_path
from unclip_jax.parallel.multihost import gather

log = logging.getLogger(__name__)

FILE = "host_times.json"
_SHARE = 0.1  # share of a step beyond which a process is named, ...
_RATIO = 2.0  # ... if it is also beyond this ratio to the median of all processes
_SPENT = {
    "data_seconds": "waits {:.3g} of {:.3g} s per step for its data (the median process: {:.3g} "
    "s); look at that host, or raise config.data.workers",
    "host_seconds": "works {:.3g} of {:.3g} s per step outside its devices (the median process: "
    "{:.3g} s); look at what else runs on that host",
}


class StepTimes(NamedTuple):
    """Mean times per step of one process over a window of steps, in seconds.

    Attributes:
        step_seconds: duration of a step; 0 = unknown.
        data_seconds: part of it spent waiting for data.
        device_seconds: part of it spent waiting for devices, and thus for other processes.
    """

    step_seconds: float
    data_seconds: float
    device_seconds: float

    @property
    def host_seconds(self) -> float:
        """Remaining time: work in Python and waiting for a processor."""
        return max(self.step_seconds - self.data_seconds - self.device_seconds, 0.0)


class HostTimes:
    """Compares the times of processes, and writes them to a file.

    The name of a host that delays the others is logged once, until another one does.
    """

    def __init__(self, folder: pathlib.Path, *, exchange: Callable[[Any], list[Any]] = gather):
        """Stores the workdir, and a function that returns the values of all processes in order."""
        self._path, self._exchange = folder / FILE, exchange
        self._named = dict.fromkeys(_SPENT, "")

    def __call__(self, step: int, own: StepTimes) -> dict[str, float]:
        """Exchanges the times of a window of steps; all processes call it.

        Returns:
            The longest times as `data_seconds_max` and `host_seconds_max`; {} with one process.

        Raises:
            OSError: the file cannot be written.
        """
        values = self._exchange([socket.gethostname(), *own])
        if len(values) == 1:
            return {}
        hosts, times = [host for host, *_ in values], [StepTimes(*each) for _, *each in values]
        if jax.process_index() == 0:
            self._write(step, hosts, times)
        longest = {}
        for name in _SPENT:
            spent = [getattr(each, name) for each in times]
            self._name_slowest(name, hosts, spent, own.step_seconds)
            longest[f"{name}_max"] = max(spent)
        return longest

    def _write(self, step: int, hosts: list[str], times: list[StepTimes]) -> None:
        """Replaces the content of the file by the times of this window."""
        rows = [
            {"process": index, "host": host, **each._asdict(), "host_seconds": each.host_seconds}
            for index, (host, each) in enumerate(zip(hosts, times, strict=True))
        ]
        with atomic_path(self._path) as partial:
            partial.write_text(json.dumps({"step": step, "processes": rows}, indent=1) + "\n")

    def _name_slowest(
        self, name: str, hosts: list[str], spent: list[float], step_seconds: float
    ) -> None:
        """Logs the process that takes longest, if the others wait for it."""
        longest, median = max(spent), statistics.median(spent)
        index = spent.index(longest)
        process = f"process {index} on {hosts[index]}"
        slow = longest > _SHARE * step_seconds > 0 and longest > _RATIO * median
        if slow and process != self._named[name] and jax.process_index() == 0:
            spends = _SPENT[name].format(longest, step_seconds, median)
            log.warning("all processes wait for %s, which %s", process, spends)
        self._named[name] = process if slow else ""
