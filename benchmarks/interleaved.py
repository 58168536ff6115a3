"""Two programs measured in turns on the same cores, each in a process of its own.

A side is a process that says what it is, then does as many units of work as it is told and how long
each took, as lines of JSON behind a mark. While one works the other waits for its next line, so
both meet the same machine; ratios are taken between neighbouring turns. Imports neither JAX nor
PyTorch.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError

MARK = "@@ "
REST = 0.3  # seconds until threads of the other side that spin for work have given up


class Spent(NamedTuple):
    """Seconds of one unit of work.

    Attributes:
        wall: that passed.
        cpu: that all threads of the process computed, which other programs on the machine disturb
            less.
    """

    wall: float
    cpu: float


class Side:
    """The end of a side that gives the orders."""

    def __init__(self, name: str, module: str, task: Any):
        """Start `python -m module`, hand it `task` as JSON, and wait until it is ready.

        Raises:
            UserError: it ended instead.
        """
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._ask(task)

    def work(self, count: int) -> Spent:
        """Medians over `count` units of work."""
        time.sleep(REST)
        walls, cpus = zip(*self._ask(count), strict=True)
        return Spent(statistics.median(walls), statistics.median(cpus))

    def close(self) -> int:
        """End it; the greatest memory it ever held, in bytes."""
        peak = self._ask(None)
        self._process.communicate()
        return peak

    def kill(self) -> None:
        """End it, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _ask(self, order: Any) -> Any:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        try:
            to.write(json.dumps(order) + "\n")
            to.flush()
        except BrokenPipeError:
            pass  # why it ended is said below
        for line in back:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            sys.stderr.write(line)
        self._process.communicate()
        raise UserError(
            f"{self.name} ended with status {self._process.returncode} before it answered; what "
            "it wrote above says why."
        )


def serve(prepare: Callable[[Any], tuple[dict[str, Any], Callable[[], Any]]]) -> None:
    """The end of a side that obeys, until its input ends.

    Args:
        prepare: the task -> facts about it, and one unit of work, which returns when it is done.
    """
    facts, once = prepare(json.loads(sys.stdin.readline()))
    _say(facts)
    for line in sys.stdin:
        count = json.loads(line)
        if count is None:
            _say(peak_memory())
            return
        _say([timed(once) for _ in range(count)])


def timed(once: Callable[[], Any]) -> Spent:
    """Seconds that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    once()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def peak_memory() -> int:
    """Greatest resident memory of this process so far, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of Linux begins with what the parent process held
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _say(value: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(value)}\n")
    sys.stdout.flush()


def alternate(sides: Sequence[Side], *, rounds: int, count: int) -> dict[str, list[Spent]]:
    """A, B, A, B, ...: what every side spent in `rounds` turns of `count` units each.

    One unit each goes before and is not counted.
    """
    for side in sides:
        side.work(1)
    spent: dict[str, list[Spent]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            spent[side.name].append(side.work(count))
    return spent


def ratios(theirs: Sequence[Spent], ours: Sequence[Spent]) -> dict[str, list[float]]:
    """Turn by turn, theirs over ours: "wall" and "cpu"."""
    pairs = list(zip(theirs, ours, strict=True))
    return {name: [getattr(a, name) / getattr(b, name) for a, b in pairs] for name in Spent._fields}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
