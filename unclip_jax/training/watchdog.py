"""A watchdog that ends a run without progress, so that its launcher restarts it."""

import faulthandler
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from unclip_jax.parallel.cluster import RESTART
from unclip_jax.training.hooks import StepDone

log = logging.getLogger(__name__)


class Watchdog:
    """A step hook that writes all stacks and ends the process if no step is taken for too long.

    A collective that waits for a dead host, or storage that never answers, raises no error. The
    limit must exceed the longest pause of a healthy run: compilation, validation, a checkpoint.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        minutes: float,
        end: Callable[[int], Any] = os._exit,
    ):
        """Starts watching; 0 `minutes` = never. `end` ends the process."""
        self._path = workdir / f"stalled_process{jax.process_index()}.txt"
        self._seconds, self._end = 60 * minutes, end
        self._step, self._last = 0, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if minutes:
            self._thread.start()

    def __call__(self, done: StepDone) -> None:
        """Notes that a step was taken."""
        self._step, self._last = done.step, time.monotonic()

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 10, 5.0)):
            if time.monotonic() - self._last > self._seconds:
                self._report()
                return

    def _report(self) -> None:
        log.error(
            "no step for %.3g minutes after step %d (config.train.stall_minutes); the stacks of "
            "all threads are in %s. Exiting with status %d; the same command continues.",
            self._seconds / 60,
            self._step,
            self._path,
            RESTART,
        )
        try:
            with self._path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            self._end(RESTART)
