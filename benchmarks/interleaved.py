"""Measures two programs in turns on the same cores, each in a process of its own.

A side is a process that reports facts about its program, then runs the requested number of units of
work and reports their durations, as lines of JSON after a mark. While one works the other waits for
its next line, so both run under the same conditions; ratios are computed between neighbouring
turns. Imports neither JAX nor PyTorch.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError

MARK = "@@ "
REST = 0.3  # seconds until idle threads of the other side stop spinning


class Duration(NamedTuple):
    """Seconds of one unit of work.

    Attributes:
        wall: elapsed time.
        cpu: CPU time of all threads of the process, which is less disturbed by other programs.
    """

    wall: float
    cpu: float


class Side:
    """The controlling end of a side: a child process that works on request."""

    def __init__(
        self, name: str, module: str, task: Any, *, environment: Mapping[str, str] | None = None
    ):
        """Starts `python -m module` with `task` as JSON, and waits until it is ready.

        Args:
            name: name of the side in results and errors.
            module: module that calls `serve`.
            task: argument of its `prepare`, JSON-ready.
            environment: variables to set in its process, in addition to those of this one.

        Raises:
            UserError: the process ended before it was ready.
        """
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts: dict[str, Any] = self._ask(task)

    def work(self, count: int) -> Duration:
        """Runs `count` units of work; returns the medians of their durations."""
        time.sleep(REST)
        walls, cpus = zip(*self._ask(count), strict=True)
        return Duration(statistics.median(walls), statistics.median(cpus))

    def close(self) -> int:
        """Ends the process; returns its peak memory in bytes."""
        peak = self._ask(None)
        self._process.communicate()
        return peak

    def kill(self) -> None:
        """Kills the process if it is still running."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _ask(self, request: Any) -> Any:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        try:
            to.write(json.dumps(request) + "\n")
            to.flush()
        except BrokenPipeError:
            pass  # the error below reports it
        for line in back:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            sys.stderr.write(line)
        self._process.communicate()
        raise UserError(
            f"{self.name} ended with status {self._process.returncode} before it answered; see "
            "its output above for the reason."
        )


def serve(prepare: Callable[[Any], tuple[dict[str, Any], Callable[[], Any]]]) -> None:
    """Serves requests on standard input until it ends; runs in the process of a side.

    Args:
        prepare: task -> (facts about it, function that runs one unit of work to its end).
    """
    facts, once = prepare(json.loads(sys.stdin.readline()))
    _reply(facts)
    for line in sys.stdin:
        count = json.loads(line)
        if count is None:
            _reply(peak_memory())
            return
        _reply([timed(once) for _ in range(count)])


def timed(once: Callable[[], Any]) -> Duration:
    """Measures the duration of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    once()
    return Duration(time.perf_counter() - wall, time.process_time() - cpu)


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():  # ru_maxrss on Linux starts at the parent's value
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _reply(value: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(value)}\n")
    sys.stdout.flush()


def alternate(sides: Sequence[Side], *, rounds: int, count: int) -> dict[str, list[Duration]]:
    """Runs sides in the order A, B, A, B, ...; returns the durations of `rounds` turns of each.

    A turn is `count` units of work. One unit of each side runs first and is not counted.
    """
    for side in sides:
        side.work(1)
    durations: dict[str, list[Duration]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            durations[side.name].append(side.work(count))
    return durations


def ratios(theirs: Sequence[Duration], ours: Sequence[Duration]) -> dict[str, list[float]]:
    """Computes the ratios theirs / ours turn by turn, for "wall" and "cpu" time."""
    pairs = list(zip(theirs, ours, strict=True))
    return {
        name: [getattr(a, name) / getattr(b, name) for a, b in pairs] for name in Duration._fields
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, smallest and largest value."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def spread_text(values: Mapping[str, float]) -> str:
    """Formats a spread: median [smallest, largest]."""
    return f"{values['median']:.3g} [{values['least']:.3g}, {values['greatest']:.3g}]"
