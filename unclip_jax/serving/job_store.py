"""Stores the jobs of the page under unguessable identifiers, and their results for some time.

Jobs are accessible only by identifier and are not listed.
"""

import collections
import dataclasses
import functools
import secrets
import threading
from typing import Any

from unclip_jax.serving import responses
from unclip_jax.serving.job_queue import Job
from unclip_jax.serving.service import ServedResult

LEASE_S = 180  # seconds without a query after which a job is cancelled: its page was closed
KEEP_S = 3600  # seconds for which results can be fetched
MAX_BYTES = 512 * 2**20  # bytes of all results
MAX_JOBS = 256


@dataclasses.dataclass(eq=False)
class StoredJob:
    """A job with its encoded result."""

    job: Job[ServedResult]

    @functools.cached_property
    def archive(self) -> bytes:
        """Returns the result as a ZIP."""
        assert self.job.result is not None
        return self.job.result.archive()

    @functools.cached_property
    def response(self) -> dict[str, Any]:
        """Returns the result as JSON."""
        assert self.job.result is not None
        return responses.of_result(self.job.result.result)

    @property
    def size(self) -> int:
        """Approximate bytes of the result in memory."""
        served = self.job.result
        if served is None:
            return 0
        uploads = sum(map(len, served.uploads.values()))
        return 3 * served.result.display.nbytes + uploads  # pixels, JSON and ZIP


class JobStore:
    """Jobs by identifier; removes the oldest when results are too many or too large."""

    def __init__(self, *, keep_s: int | float = KEEP_S, max_bytes: int = MAX_BYTES):
        """Creates an empty store.

        Args:
            keep_s: seconds after its end when a job is removed.
            max_bytes: bytes of all results.
        """
        self._keep_s, self._max_bytes = keep_s, max_bytes
        self._jobs: collections.OrderedDict[str, StoredJob] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, job: Job[ServedResult]) -> str:
        """Stores a job; returns its identifier."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._jobs[name] = StoredJob(job)
            self._expire()
        return name

    def get(self, name: str) -> StoredJob | None:
        """Returns a job and renews its lease; None if it does not exist."""
        with self._lock:
            self._expire()
            stored = self._jobs.get(name)
        if stored is not None:
            stored.job.renew()
        return stored

    def remove(self, name: str) -> bool:
        """Cancels and removes a job; returns False if it does not exist."""
        with self._lock:
            stored = self._jobs.pop(name, None)
        if stored is not None:
            stored.job.cancel()
        return stored is not None

    def _expire(self) -> None:
        """Removes finished jobs: old ones, and the oldest beyond the limits, but not the newest."""
        total = sum(stored.size for stored in self._jobs.values())
        for name, stored in list(self._jobs.items())[:-1]:
            too_many = total > self._max_bytes or len(self._jobs) > MAX_JOBS
            old = stored.job.seconds_since_end > self._keep_s
            if stored.job.done and (too_many or old):
                del self._jobs[name]
                total -= stored.size
