"""Goodput: how the time of a run was used, in every session.

`goodput.json` in the workdir has one entry per session: seconds in total and for starting,
compiling, waiting for data, saving, evaluating, and repeating steps because the previous session
was killed after its last checkpoint; the rest is training. Process 0 writes it with every
checkpoint and at the end.
"""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import psutil

from unclip_jax.core.files import write_atomically
from unclip_jax.training.hooks import LoopState, StateHook, StepDone

log = logging.getLogger(__name__)

FILE = "goodput.json"
PARTS = ("start", "compile", "data", "save", "evaluate", "repeated")


class Goodput:
    """A step hook that attributes the seconds of a session to their uses."""

    def __init__(self, workdir: pathlib.Path, *, start: int):
        """Begins a session at step `start`; the time since the process started is its `start`."""
        self._path = workdir / FILE
        self._sessions = _read(self._path)
        self._begin = psutil.Process().create_time()
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._seconds["start"] = time.time() - self._begin
        self._first, self._step = start, start
        self._ahead = max((session["last_step"] for session in self._sessions), default=start)
        self._since = time.perf_counter()  # start of the current step

    def __call__(self, done: StepDone) -> None:
        """Attributes the time of a step."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        wait = min(done.metrics.get("data_seconds", 0.0), seconds)
        if self._step == self._first:
            self._seconds["compile"] += seconds
        elif done.step <= self._ahead:
            self._seconds["repeated"] += seconds
        else:
            self._seconds["data"] += wait
        self._step = done.step

    @contextlib.contextmanager
    def account(self, part: str) -> Iterator[None]:
        """Attributes the time of a block between two steps to `part`, one of `PARTS`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._seconds[part] += seconds
            self._since += seconds

    def accounted(self, part: str, hook: StateHook) -> StateHook:
        """Returns `hook` with its time attributed to `part`."""

        def call(moment: LoopState) -> None:
            with self.account(part):
                hook(moment)

        return call

    def write(self) -> None:
        """Writes the file, on process 0."""
        if jax.process_index() == 0:
            text = json.dumps([*self._sessions, self._session()], indent=1)
            write_atomically(self._path, text + "\n")

    def close(self) -> None:
        """Writes the file, and logs how this session used its time."""
        self.write()
        session = self._session()
        total = session["seconds"]["total"]
        shares = {**session["seconds"], "train": total - sum(self._seconds.values())}
        del shares["total"]
        listed = ", ".join(f"{name} {100 * shares[name] / total:.0f} %" for name in shares)
        log.info("%d steps in %.0f s: %s", self._step - self._first, total, listed)

    def _session(self) -> dict[str, Any]:
        seconds = {"total": time.time() - self._begin, **self._seconds}
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return {"first_step": self._first, "last_step": self._step, "seconds": rounded}


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the sessions in the file; [] if it is missing or cannot be read."""
    try:
        sessions = json.loads(path.read_text())
        return [s for s in sessions if isinstance(s, dict) and isinstance(s.get("last_step"), int)]
    except (OSError, ValueError, TypeError):
        return []
