"""A bounded queue of jobs with one worker.

One thread suffices for one accelerator. The owner of a job can follow its progress, wait for it, or
cancel it; when the queue is full, new jobs are rejected immediately.
"""

import collections
import logging
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress, ProgressCallback

T = TypeVar("T")
Work = Callable[[ProgressCallback], T]

RATES = 5  # finished jobs of a kind whose median rate estimates its time


class QueueFull(UserError):
    """Raised when the queue is full; the client may try again later."""


class JobCancelled(Exception):
    """Raised inside the work of a cancelled job."""


class Job(Generic[T]):
    """A unit of work in the queue."""

    def __init__(
        self,
        work: Work[T],
        *,
        kind: str = "",
        cost: int = 1,
        lease_s: int | float | None = None,
        limit_s: int | float | None = None,
    ):
        """Creates a waiting job.

        Args:
            work: the function to run; it is called with a callback for its progress.
            kind: jobs of one kind take time in proportion to their cost.
            cost: for example, the number of images.
            lease_s: seconds without a call of `renew` after which it is cancelled; None = never.
            limit_s: longest running time; None = no limit.
        """
        self.kind, self.cost = kind, cost
        self.progress: Progress | None = None
        self.result: T | None = None
        self.error: str | None = None  # one line for the owner
        self.bug = False  # True if the error is not the owner's mistake
        self.revision = 0  # increases with every report of progress
        self._work: Work[T] | None = work
        self._lease_s, self._limit_s = lease_s, limit_s
        self._renewed = time.monotonic()
        self._began: float | None = None
        self._ended: float | None = None
        self._cancelled, self._done = threading.Event(), threading.Event()

    @property
    def done(self) -> bool:
        """True if the job has a result or an error, or was cancelled."""
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """True if it was cancelled, or its lease ran out before it was done."""
        expired = (
            self._lease_s is not None
            and not self.done
            and time.monotonic() - self._renewed > self._lease_s
        )
        if expired:
            self._cancelled.set()
        return self._cancelled.is_set()

    @property
    def seconds(self) -> float:
        """Running time so far, or until the end."""
        if self._began is None:
            return 0.0
        return (self._ended or time.monotonic()) - self._began

    @property
    def seconds_since_end(self) -> float:
        """Time since the end; 0 before."""
        return 0.0 if self._ended is None else time.monotonic() - self._ended

    def renew(self) -> None:
        """Renews the lease."""
        self._renewed = time.monotonic()

    def cancel(self) -> None:
        """Cancels it: immediately if it waits, at the next report of progress if it runs."""
        self._cancelled.set()

    def wait(self, seconds: int | float) -> bool:
        """Waits for the end; returns False on a timeout."""
        return self._done.wait(seconds)

    def _report(self, state: Progress) -> None:
        if self.cancelled:
            raise JobCancelled
        if self._limit_s is not None and self.seconds > self._limit_s:
            raise UserError(
                f"the request ran for more than {self._limit_s:g} seconds, the limit of this "
                "server; ask for fewer images or steps."
            )
        self.progress = state
        self.revision += 1

    def _run(self) -> None:
        self._began = time.monotonic()
        try:
            if not self.cancelled and self._work is not None:
                self.result = self._work(self._report)
        except JobCancelled:
            pass
        except UserError as error:
            self.error = " ".join(str(error).split())
        except Exception as error:
            logging.exception("a request failed")
            self.bug, self.error = True, f"the server failed ({type(error).__name__}); see its log."
        finally:
            self._ended = time.monotonic()
            self._work = None  # frees the uploads
            self._done.set()


class JobQueue:
    """Jobs in order of arrival, and the thread that runs them."""

    def __init__(self, *, waiting: int):
        """Starts the worker; `waiting` jobs may wait behind the running one."""
        self.limit = waiting
        self._queue: collections.deque[Job[Any]] = collections.deque()
        self._running: Job[Any] | None = None
        self._changed = threading.Condition()
        self._rates: dict[str, collections.deque[float]] = {}  # seconds per unit of cost, by kind
        threading.Thread(target=self._serve, daemon=True, name="jobs").start()

    def submit(self, job: Job[T]) -> Job[T]:
        """Adds a job and returns it.

        Raises:
            QueueFull: the maximum number of jobs is waiting.
        """
        with self._changed:
            self._drop_cancelled()
            if len(self._queue) >= self.limit + (self._running is None):
                raise QueueFull(
                    f"{len(self._queue)} requests are waiting already, the limit of this "
                    "server; try again in a minute."
                )
            self._queue.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """Returns the number of jobs ahead of this one; 0 = it runs or is done."""
        with self._changed:
            self._drop_cancelled()
            running = self._running is not None
            return self._queue.index(job) + running if job in self._queue else 0

    def remaining_s(self, job: Job[Any]) -> float | None:
        """Estimates the seconds until a job is done, from earlier ones; None = unknown yet."""
        with self._changed:
            self._drop_cancelled()
            line = list(self._queue)
            before = line[: line.index(job) + 1] if job in line else []
            jobs = [self._running, *before] if self._running else before
            if job not in jobs:
                return None
            times = [self._expected(each) for each in jobs]
        return sum(each for each in times if each is not None) if None not in times else None

    def state(self) -> dict[str, int]:
        """Returns the length of the queue."""
        with self._changed:
            self._drop_cancelled()
            running = int(self._running is not None)
            return {"running": running, "waiting": len(self._queue), "limit": self.limit}

    def _expected(self, job: Job[Any]) -> float | None:
        """Estimates the seconds that a job still needs, by the median rate of its kind."""
        if not (rates := self._rates.get(job.kind)):
            return None
        return max(0.0, statistics.median(rates) * job.cost - job.seconds)

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._queue if job.cancelled]:
            self._queue.remove(job)
            job._run()  # which only marks it as cancelled

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                job = self._running = self._queue.popleft()
            job._run()
            with self._changed:
                if job.result is not None:
                    rates = self._rates.setdefault(job.kind, collections.deque(maxlen=RATES))
                    rates.append(job.seconds / job.cost)
                self._running = None
            del job  # drops the reference to its result
