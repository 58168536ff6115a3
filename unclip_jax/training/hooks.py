"""Hooks: callables for logging, evaluation and checkpoints outside the step.

*Step hooks* receive the metrics of every step as plain numbers, one step late, so that the device
never waits. *State hooks* receive the state at an interval; the loop runs all step hooks of earlier
steps before them.
"""

import dataclasses
import json
import logging
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX
from tqdm import tqdm

from unclip_jax.core.checks import UserError
from unclip_jax.core.files import write_atomically
from unclip_jax.core.types import HostBatch
from unclip_jax.training.host_times import HostTimes, StepTimes
from unclip_jax.training.state import TrainState

log = logging.getLogger(__name__)

Numbers = Mapping[str, float]


class StepDone(NamedTuple):
    """A finished step.

    Attributes:
        step: number of steps taken, including this one.
        metrics: metrics of this step, as plain numbers.
        batch: this process's part of the step's batch.
    """

    step: int
    metrics: Numbers
    batch: HostBatch


class LoopState(NamedTuple):
    """The state between two steps.

    Attributes:
        step: number of steps taken.
        state: state after these steps; it is donated to the next step, so hooks must not keep it.
        position: data position after these steps.
    """

    step: int
    state: TrainState
    position: Any


StepHook = Callable[[StepDone], None]
StateHook = Callable[[LoopState], None]


@dataclasses.dataclass(frozen=True)
class Every:
    """A state hook with its interval in steps (0 = never); it also runs after the last step."""

    steps: int
    hook: StateHook

    def due(self, step: int, *, last: bool) -> bool:
        """True if the hook runs after `step` steps."""
        return self.steps > 0 and (last or step % self.steps == 0)


SAVE = 1  # a request to all processes; smaller than any signal number


class SaveClock:
    """Requests a checkpoint when some minutes have passed; only on process 0."""

    def __init__(self, minutes: float, *, now: Callable[[], float] = time.monotonic):
        """Starts the clock; with 0 `minutes` it never requests one."""
        self._seconds = 60 * minutes if jax.process_index() == 0 else 0.0
        self._now, self._last = now, now()

    def request(self) -> int | None:
        """Returns `SAVE` once the time has passed and restarts the clock; else None."""
        if not self._seconds or self._now() - self._last < self._seconds:
            return None
        self.note_saved()
        return SAVE

    def note_saved(self) -> None:
        """Restarts the clock."""
        self._last = self._now()


class ProgressBar:
    """A tqdm bar with steps/s, ETA, examples/s and the running loss; only on process 0."""

    def __init__(self, *, name: str, steps: int, start: int, batch_size: int):
        """Opens the bar at `start` of `steps`."""
        self._batch_size = batch_size
        self._begin: tuple[int, float] | None = None  # after the first step, which compiles
        self._loss = math.nan
        self._notes: dict[str, str] = {}
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            disable=jax.process_index() != 0,
        )

    def __call__(self, done: StepDone) -> None:
        """Advances the bar to this step."""
        loss = done.metrics["loss"]
        if math.isfinite(loss):
            self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        now = time.perf_counter()
        self._begin = self._begin or (done.step, now)
        steps, seconds = done.step - self._begin[0], now - self._begin[1]
        rate = steps * self._batch_size / max(seconds, 1e-9)
        postfix = {"loss": f"{self._loss:.4g}", "examples/s": f"{rate:.3g}", **self._notes}
        self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(done.step - self._bar.n)

    def note(self, values: Numbers) -> None:
        """Shows numbers beside the bar."""
        self._notes.update({name: f"{value:.4g}" for name, value in values.items()})

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()


class MetricsWriter:
    """Writes `metrics.jsonl` and TensorBoard events in the workdir; only on process 0.

    As a step hook it writes the mean of each metric over `every` steps; `write` accepts other
    numbers. Lines for steps after `start`, which a killed run may have left, are removed.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        every: int,
        start: int,
        batch_size: int,
        copy: Callable[[int, Numbers], None] = lambda step, values: None,
    ):
        """Continues the files of `workdir` after step `start`; passes all numbers to `copy` too."""
        self._copy = copy
        self._every = every
        self._batch_size = batch_size
        self._hosts = HostTimes(workdir)
        self._window: list[Numbers] = []
        self._since: float | None = None  # after the first step, which compiles
        self._timed = 0
        self._open = jax.process_index() == 0
        if self._open:
            path = workdir / "metrics.jsonl"
            _forget_after(path, start)
            self._lines = path.open("a", encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=True
            )

    def __call__(self, done: StepDone) -> None:
        """Adds a step to the window; writes the window when it is full."""
        now = time.perf_counter()
        self._window.append(done.metrics)
        self._timed += self._since is not None
        self._since = self._since or now
        if done.step % self._every:
            return
        means = {name: _mean(m[name] for m in self._window) for name in self._window[0]}
        means["bad_steps"] = done.metrics["bad_steps"]
        seconds = (now - self._since) / self._timed if self._timed else 0.0  # per step
        if self._timed:
            means["examples_per_second"] = self._batch_size / seconds
        waits = (means.get(name, 0.0) for name in ("data_seconds", "device_seconds"))
        means |= self._hosts(done.step, StepTimes(seconds, *waits))
        self.write(done.step, means)
        self._window, self._since, self._timed = [], now, 0

    def write(self, step: int, values: Numbers) -> None:
        """Writes one line; numbers that are not finite become null in JSON."""
        if not self._open:
            return
        record = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, **record}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._copy(step, values)

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._open:
            self._lines.close()
            self._board.close()


class NaNGuard:
    """Saves batches whose loss or gradients were not finite, and stops a run with many of them.

    The first batch of every sequence of skipped steps is saved; after `most` consecutive ones the
    run stops. Skipped steps change no parameters.
    """

    def __init__(self, workdir: pathlib.Path, *, most: int):
        """Saves batches in `workdir`; stops after `most` consecutive skipped steps."""
        self._workdir = workdir
        self._most = most
        self._saved: pathlib.Path | None = None

    def __call__(self, done: StepDone) -> None:
        """Checks one step.

        Raises:
            UserError: there are too many consecutive skipped steps; names the saved batch.
        """
        bad = int(done.metrics["bad_steps"])
        if bad == 0:
            self._saved = None
            return
        log.warning("step %d: loss or gradients not finite; skipped (%d in a row)", done.step, bad)
        if self._saved is None:
            self._saved = self._save(done)
        if bad >= self._most:
            raise UserError(
                f"loss or gradients were not finite in the {bad} steps from {done.step - bad + 1} "
                f"to {done.step}; the first batch of these is in {self._saved}. Parameters are "
                "unchanged. Lower config.optim.learning_rate, or inspect that batch."
            )

    def _save(self, done: StepDone) -> pathlib.Path:
        name = f"bad_batch_step{done.step}_process{jax.process_index()}.npz"
        path = self._workdir / name
        np.savez(path, allow_pickle=False, **done.batch)  # pyright: ignore[reportArgumentType]
        return path


class Profiler:
    """Records a JAX profile of `steps` steps from step `start` on, for TensorBoard.

    On SIGUSR1 the process records the next `steps` steps, or `ON_SIGNAL` steps if that is 0.
    """

    ON_SIGNAL = 5

    def __init__(self, workdir: pathlib.Path, *, start: int, steps: int):
        """Writes to `workdir/profile`; with steps = 0 it records only after the signal."""
        self._folder = str(workdir / "profile")
        self._window, self._steps = (start, start + steps), steps or self.ON_SIGNAL
        self._running, self._requested = False, False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._request)

    def _request(self, number: int, frame: Any) -> None:
        self._requested = True

    def __call__(self, done: StepDone) -> None:
        """Starts or stops the recording."""
        if self._requested and not self._running:
            last = done.step + self._steps
            log.info("recording a profile of steps %d to %d", done.step + 1, last)
            self._requested, self._window = False, (done.step, done.step + self._steps)
        begin, end = self._window
        if begin <= done.step < end and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif done.step >= end:
            self._stop()

    def close(self) -> None:
        """Stops a recording in progress, and restores the signal's handler."""
        self._stop()
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._window = (0, 0)


def _mean(values: Iterator[float]) -> float:
    """Computes the mean of the finite values; NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Removes lines of later steps and an incomplete last line, atomically."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            current = json.loads(line)["step"] <= step
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if current:
            lines.append(line + "\n")
    write_atomically(path, "".join(lines))
