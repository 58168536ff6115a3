"""Lock for one trainer per workdir, including trainers of several hosts on shared storage.

The lock is a file that names its process and whose modification time is a heartbeat. It is stale if
its process is on this host and has ended, or if its heartbeat has stopped; the next trainer then
takes it over. Times are those of the storage, so the clocks of hosts may differ.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from unclip_jax.core.checks import UserError
from unclip_jax.core.object_lock import is_running, own_process
from unclip_jax.parallel.multihost import gather

FILE = "trainer.lock"
BEAT = 5.0  # seconds between two heartbeats
VISIBLE = 20.0  # seconds within which a new file becomes visible on every machine
STALE = 30.0  # seconds without a heartbeat after which a trainer on another host counts as dead


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Locks `workdir` against other trainers; with several processes the first holds the lock.

    Raises:
        UserError: another trainer is using the folder, it cannot be written or does not support
            checkpoints, or it is not the same folder in all processes.
    """
    lock, problem = None, ""
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _check_renames(workdir)
            lock = _acquire(workdir / FILE)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = (
                f"cannot write to the workdir {workdir}: {error.strerror}. Choose another "
                "--workdir."
            )
    problem = gather(problem)[0]  # all processes end, not only the first
    if problem:
        raise UserError(problem)
    try:
        _check_shared(workdir, lock.token if lock is not None else "")
        yield
    finally:
        if lock is not None:
            lock.release()


def _check_renames(workdir: pathlib.Path) -> None:
    """Checks that folders with contents can be renamed, as checkpoints are.

    Raises:
        UserError: they cannot, as in buckets that are mounted by gcsfuse or Mountpoint.
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=workdir, prefix=f"{FILE}.") as name:
        folder = pathlib.Path(name, "a")
        (folder / "b").mkdir(parents=True)
        (folder / "b" / "c").touch()
        try:
            folder.rename(folder.with_name("d"))
        except OSError as error:
            raise UserError(
                f"the workdir {workdir} is on storage that cannot rename folders with contents "
                f"({error.strerror}), which checkpoints need. If it is a mounted bucket, give its "
                "gs:// URL instead, or mount one with a hierarchical namespace."
            ) from None


def _check_shared(workdir: pathlib.Path, token: str) -> None:
    """Checks that all processes see the lock of the first.

    Raises:
        UserError: some do not; raised in every process, with their numbers.
    """
    token, deadline = gather(token)[0], time.monotonic() + VISIBLE
    while _read(workdir / FILE).get("token") != token and time.monotonic() < deadline:
        time.sleep(0.1)
    shared = gather(_read(workdir / FILE).get("token") == token)
    others = [str(index) for index, same in enumerate(shared) if not same]
    if others:
        raise UserError(
            f"the workdir {workdir} is not the same folder in all processes: process "
            f"{', '.join(others)} does not see what process 0 writes there. Give a folder of a "
            "file system that all machines mount, or a gs:// URL."
        )


class _Lock:
    """A lock held by this process, with its heartbeat."""

    def __init__(self, path: pathlib.Path, token: str):
        self._path, self.token = path, token
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stops the heartbeat and removes the file if it still belongs to this process."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self._path).get("token") == self.token:
                self._path.unlink()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT):
            with contextlib.suppress(OSError):  # the next one may succeed
                os.utime(self._path)


def _acquire(path: pathlib.Path) -> _Lock:
    """Creates the lock, or takes over a stale one.

    Raises:
        UserError: another trainer holds it.
    """
    token, holder = uuid.uuid4().hex, {}
    for _ in range(3):
        try:
            with path.open("x") as file:  # fails if it exists, also on NFS
                file.write(json.dumps({"token": token, **own_process()}))
            return _Lock(path, token)
        except FileExistsError:
            holder = _read(path)
            if not _is_stale(path, holder):
                break
            _remove(path, holder)
    raise UserError(
        f"another trainer is at work in {path.parent}: process {holder.get('pid', '?')} on "
        f"{holder.get('name', '?')}; wait for it, stop it, or give another --workdir."
    )


def _is_stale(path: pathlib.Path, holder: dict[str, Any]) -> bool:
    """True if the holder of a lock has ended; waits for a heartbeat if it is on another host."""
    if holder.get("host") == own_process()["host"]:
        return not is_running(holder)
    first = _modified(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{FILE}.") as probe:
        while (beat := _modified(path)) == first and beat is not None:
            os.utime(probe.name)  # now, in the storage's time
            if (_modified(pathlib.Path(probe.name)) or beat) - beat > STALE:
                return True
            time.sleep(STALE / 30)
    return beat is None  # None = released; otherwise alive


def _remove(path: pathlib.Path, holder: dict[str, Any]) -> None:
    """Removes a stale lock, unless another trainer has replaced it in the meantime."""
    aside = path.with_name(f"{FILE}.stale.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside).get("token") != holder.get("token") and not path.exists():
            aside.rename(path)
        aside.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a lock; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _modified(path: pathlib.Path) -> float | None:
    """Returns the modification time in the storage's time; None without the file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
