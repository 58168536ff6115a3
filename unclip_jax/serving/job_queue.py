"""A bounded queue of jobs with one worker.

One thread works, because one accelerator does. The owner of a job can follow its progress, wait for
it, or cancel it; a job that finds the queue full is refused at once.
"""

import collections
import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from unclip_jax.core.checks import UserError
from unclip_jax.inference.progress import Progress, ProgressCallback

T = TypeVar("T")
Work = Callable[[ProgressCallback], T]


class QueueFull(UserError):
    """The queue is full; the caller may try again later."""


class JobCancelled(Exception):
    """Raised inside the work of a cancelled job."""


class Job(Generic[T]):
    """One piece of work in the queue."""

    def __init__(self, work: Work[T], owner: str):
        """`owner`: who may cancel it."""
        self.owner = owner
        self.progress: Progress | None = None
        self.result: T | None = None
        self.error: str | None = None  # one line for the owner
        self.bug = False  # True if the error is not the owner's mistake
        self._work: Work[T] | None = work
        self._cancelled, self._done = threading.Event(), threading.Event()

    @property
    def done(self) -> bool:
        """True if there is a result or an error, or the job was cancelled."""
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """True if its owner cancelled it."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ends it: at once while it waits, at the next report of progress while it runs."""
        self._cancelled.set()

    def wait(self, seconds: int | float) -> bool:
        """Waits for its end; returns True if it came in time."""
        return self._done.wait(seconds)

    def _report(self, state: Progress) -> None:
        if self.cancelled:
            raise JobCancelled
        self.progress = state

    def _run(self) -> None:
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
            self._work = None  # frees the uploads
            self._done.set()


class JobQueue:
    """Jobs in order of arrival, and the thread that runs them."""

    def __init__(self, *, waiting: int):
        """`waiting`: jobs that may wait behind the running one."""
        self.limit = waiting
        self._queue: collections.deque[Job[Any]] = collections.deque()
        self._running: Job[Any] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True, name="jobs").start()

    def submit(self, work: Work[T], *, owner: str) -> Job[T]:
        """Adds a job.

        Raises:
            QueueFull: as many jobs wait as may.
        """
        job = Job(work, owner)
        with self._changed:
            self._drop_cancelled()
            if len(self._queue) >= self.limit + (self._running is None):
                raise QueueFull(
                    f"{len(self._queue)} requests are waiting already, as many as this server "
                    "takes; try again in a minute."
                )
            self._queue.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """Number of jobs before this one; 0 = it runs or is done."""
        with self._changed:
            self._drop_cancelled()
            running = self._running is not None
            return self._queue.index(job) + running if job in self._queue else 0

    def cancel(self, owner: str) -> int:
        """Ends all jobs of one owner; returns their number."""
        with self._changed:
            owned = [job for job in (self._running, *self._queue) if job and job.owner == owner]
            for job in owned:
                job.cancel()
            self._drop_cancelled()
        return len(owned)

    def state(self) -> dict[str, int]:
        """The length of the queue."""
        with self._changed:
            self._drop_cancelled()
            running = int(self._running is not None)
            return {"running": running, "waiting": len(self._queue), "limit": self.limit}

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._queue if job.cancelled]:
            self._queue.remove(job)
            job._run()  # which only ends it

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                self._running = self._queue.popleft()
            self._running._run()
            with self._changed:
                self._running = None
