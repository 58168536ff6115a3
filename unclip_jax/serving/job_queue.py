"""The desk: requests wait in one bounded line and are served one at a time.

One thread works, because one accelerator does. Whoever asked can look on, wait, or leave; a full
line is refused at once rather than made to wait for ever.
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
    """The line is full; come back later."""


class JobCancelled(Exception):
    """Raised inside work that nobody waits for any more."""


class Job(Generic[T]):
    """One request at the desk."""

    def __init__(self, work: Work[T], owner: str):
        """`owner`: who may cancel it."""
        self.owner = owner
        self.progress: Progress | None = None
        self.result: T | None = None
        self.error: str | None = None  # for whoever asked, one line
        self.bug = False  # the error is ours
        self._work: Work[T] | None = work
        self._left, self._done = threading.Event(), threading.Event()

    @property
    def done(self) -> bool:
        """Whether there is a result, an error, or nobody who waits."""
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self._left.is_set()

    def cancel(self) -> None:
        """End it: at once while it waits, at the next sign of progress while it is at work."""
        self._left.set()

    def wait(self, seconds: int | float) -> bool:
        """Wait for its end; whether it has come."""
        return self._done.wait(seconds)

    def _watch(self, now: Progress) -> None:
        if self.cancelled:
            raise JobCancelled
        self.progress = now

    def _run(self) -> None:
        try:
            if not self.cancelled and self._work is not None:
                self.result = self._work(self._watch)
        except JobCancelled:
            pass
        except UserError as error:
            self.error = " ".join(str(error).split())
        except Exception as error:
            logging.exception("a request failed")
            self.bug, self.error = True, f"the server failed ({type(error).__name__}); see its log."
        finally:
            self._work = None  # and the uploads it holds
            self._done.set()


class JobQueue:
    """A worker and the line before it."""

    def __init__(self, *, waiting: int):
        """`waiting`: jobs that may stand in line behind the one at work."""
        self.limit = waiting
        self._line: collections.deque[Job[Any]] = collections.deque()
        self._at_work: Job[Any] | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True, name="desk").start()

    def submit(self, work: Work[T], *, owner: str) -> Job[T]:
        """Stand in line.

        Raises:
            Full: the line is as long as it may be.
        """
        job = Job(work, owner)
        with self._changed:
            self._drop_cancelled()
            if len(self._line) >= self.limit + (self._at_work is None):
                raise QueueFull(
                    f"{len(self._line)} requests are waiting already, as many as this server "
                    "takes; try again in a minute."
                )
            self._line.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job[Any]) -> int:
        """How many jobs come before this one; 0 = it is at work or done."""
        with self._changed:
            self._drop_cancelled()
            at_work = self._at_work is not None
            return self._line.index(job) + at_work if job in self._line else 0

    def cancel(self, owner: str) -> int:
        """End all jobs of one owner; how many there were."""
        with self._changed:
            mine = [job for job in (self._at_work, *self._line) if job and job.owner == owner]
            for job in mine:
                job.cancel()
            self._drop_cancelled()
        return len(mine)

    def state(self) -> dict[str, int]:
        """The line in numbers."""
        with self._changed:
            self._drop_cancelled()
            running = int(self._at_work is not None)
            return {"running": running, "waiting": len(self._line), "limit": self.limit}

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._line if job.cancelled]:
            self._line.remove(job)
            job._run()  # which does nothing but end it

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    self._changed.wait()
                self._at_work = self._line.popleft()
            self._at_work._run()
            with self._changed:
                self._at_work = None
