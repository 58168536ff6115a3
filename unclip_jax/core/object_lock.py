"""Locks in object stores: an object that names its process and has a counter as a heartbeat.

A lock is stale if its process was on this host and has ended, or if its counter has stopped.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Url

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two heartbeats
STALE = 45.0  # seconds without one, after which a process on another host counts as dead

Holder = dict[str, Any]


class Locked(Exception):
    """Another process holds a lock; `holder` says which."""

    def __init__(self, holder: Holder):
        super().__init__(describe(holder))
        self.holder = holder


class ObjectLock:
    """A lock that this process holds, with a thread for its heartbeat."""

    def __init__(self, url: Url):
        """Takes the lock, or takes over a stale one.

        Raises:
            Locked: another process holds it.
            UserError: the store cannot be read or written.
        """
        self._url, self._token, self._beats = url, uuid.uuid4().hex, 0
        holder = _holder(url)
        if holder and live([url]) is None:
            self._write()
        elif not holder:
            url.create(self._content())
        holder = _holder(url)
        if holder.get("token") != self._token:
            raise Locked(holder)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock", daemon=True)
        self._thread.start()

    def new_holder(self) -> Holder | None:
        """Returns the process that has taken the lock over; None if this one still has it."""
        holder = _holder(self._url)
        return holder if holder.get("token", self._token) != self._token else None

    def release(self) -> None:
        """Removes the lock, if it is still this process's."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(UserError):
            if _holder(self._url).get("token") == self._token:
                self._url.unlink()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT):
            with contextlib.suppress(UserError):  # of the store; the next one may succeed
                if _holder(self._url).get("token") == self._token:
                    self._write()

    def _write(self) -> None:
        self._beats += 1
        self._url.write_bytes(self._content())

    def _content(self) -> bytes:
        """Returns the content of the lock."""
        return json.dumps({"token": self._token, "beats": self._beats, **own_process()}).encode()


def live(locks: Iterable[Url]) -> Holder | None:
    """Returns the holder of the first lock that is not stale; None if there is none.

    Waits for a heartbeat where the holders are on other hosts, of all locks at the same time.
    """
    holders = {url: holder for url in locks if (holder := _holder(url))}
    host = own_process()["host"]
    local = [holder for holder in holders.values() if holder.get("host") == host]
    running = [holder for holder in local if is_running(holder)]
    if running:
        return running[0]
    waiting = {url: holder for url, holder in holders.items() if holder.get("host") != host}
    end = time.monotonic() + STALE
    while waiting and time.monotonic() < end:
        log.info("waiting for a heartbeat in %s", next(iter(waiting)))
        time.sleep(STALE / 30)
        for url, before in list(waiting.items()):
            now = _holder(url)
            if not now:  # released
                del waiting[url]
            elif now != before:
                return now
    return None


def describe(holder: Holder) -> str:
    """Returns a holder as "process 7 on host"."""
    return f"process {holder.get('pid', '?')} on {holder.get('name', '?')}"


def own_process() -> Holder:
    """Returns what identifies this process: host (with its boot and namespace), number, start."""
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            link = os.path.islink(name)
            parts.append(os.readlink(name) if link else pathlib.Path(name).read_text().strip())
    pid = os.getpid()
    return {
        "host": " ".join(parts),
        "name": socket.gethostname(),
        "pid": pid,
        "started": _started(pid),
    }


def is_running(holder: Holder) -> bool:
    """True if the process on this host that wrote a lock is running."""
    return _started(holder.get("pid")) == holder.get("started")


def _started(pid: Any) -> str:
    """Returns the start time of a process on this host; "" if it is not running."""
    if not isinstance(pid, int):
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # another user's
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "running"
    return "" if fields[0] in "ZX" else fields[19]


def _holder(url: Url) -> Holder:
    """Returns the holder that a lock names; {} if there is no lock."""
    text = url.read_if_present()
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {"damaged": True}
