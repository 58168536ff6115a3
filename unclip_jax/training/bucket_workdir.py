"""Workdirs in object stores: checkpoints are written there, other files through a local folder.

Objects can be neither appended to nor renamed, so metrics, sample grids and exports are written to
a local folder, whose files are copied to the store before every checkpoint, every minute, and at
the end. After a killed run the store therefore has all metrics up to the step from which the run
continues. The manifest of an export is copied last and removed first, so that readers see a
complete export or none.
"""

import contextlib
import logging
import pathlib
import tempfile
import threading
from collections.abc import Iterator

import jax

from unclip_jax.core import object_lock
from unclip_jax.core.checks import UserError
from unclip_jax.core.object_lock import ObjectLock
from unclip_jax.core.storage import Url
from unclip_jax.parallel.multihost import gather
from unclip_jax.training import fingerprint, workdir_lock
from unclip_jax.training.workdir import TakenOver, Workdir

log = logging.getLogger(__name__)

PERIOD = 60.0  # seconds between copies of changed files
_LAST = "manifest.json"  # completes an export
_OWN = {"checkpoints", "damaged", workdir_lock.FILE}  # not copied

State = tuple[int, int]  # size and time of modification of a local file


@contextlib.contextmanager
def open_workdir(url: Url) -> Iterator[Workdir]:
    """Opens the workdir at `url` for training; every process calls it.

    Raises:
        UserError: the store does not support checkpoints, cannot be read or written, or another
            trainer is using the workdir.
    """
    if url.scheme != "gs":
        raise UserError(
            f"--workdir is {str(url)!r}, but the library for checkpoints (Orbax) writes to gs:// "
            f"and to files, not to {url.scheme}://; give a folder of a shared file system, such as "
            "FSx for Lustre, and copy the export when it is done."
        )
    problem, lock = "", None
    if jax.process_index() == 0:
        try:
            lock = ObjectLock(url / workdir_lock.FILE)
        except object_lock.Locked as error:
            problem = (
                f"another trainer is at work in {url}: {error}; wait for it, stop it, or give "
                "another --workdir."
            )
        except UserError as error:
            problem = str(error)
    problem = gather(problem)[0]
    if problem:
        raise UserError(problem)
    try:
        with tempfile.TemporaryDirectory(prefix="unclip_jax_") as folder:
            copy = _Copy(url, pathlib.Path(folder), lock)
            try:
                yield Workdir(copy.folder, checkpoints=url, before_save=copy.before_save)
            except BaseException:
                with contextlib.suppress(UserError):  # the first error is more important
                    copy.close()
                raise
            copy.close()
    finally:
        if lock is not None:
            lock.release()


class _Copy:
    """A local folder whose changed files are copied to a store."""

    def __init__(self, url: Url, folder: pathlib.Path, lock: ObjectLock | None):
        """Copies the files at the top of the workdir from the store, for a run that continues."""
        self.folder = folder
        self._url, self._lock = url, lock
        self._copied: dict[str, State] = {}
        self._busy = threading.Lock()
        names = url.names()
        if fingerprint.FILE not in names and "checkpoints" in names:
            raise UserError(
                f"{url} holds checkpoints but no {fingerprint.FILE}; the experiment that "
                "wrote them is unknown. Choose another --workdir."
            )
        for name in names:
            if name not in _OWN and name.endswith((".json", ".jsonl")):
                (url / name).download(folder / name)
        self._copied = self._states()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workdir copy", daemon=True)
        self._thread.start()

    def before_save(self) -> None:
        """Copies changed files.

        Raises:
            TakenOver: another trainer has taken over.
            UserError: a file cannot be copied.
        """
        other = self._lock.new_holder() if self._lock is not None else None
        if other:
            raise TakenOver(
                f"another trainer has taken over {self._url}: {object_lock.describe(other)}; this "
                "one stops. Its checkpoints are complete."
            )
        self._copy()

    def close(self) -> None:
        """Copies changed files for the last time."""
        self._stopped.set()
        self._thread.join()
        self.before_save()

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD):
            try:
                self._copy()
            except (UserError, OSError) as error:  # the next copy, or a checkpoint, may succeed
                log.warning("%s", error)

    def _copy(self) -> None:
        with self._busy:
            states = self._states()
            changed = [name for name, state in states.items() if self._copied.get(name) != state]
            manifests = [name for name in changed if pathlib.PurePath(name).name == _LAST]
            for name in manifests:
                if len(changed) > len(manifests):
                    (self._url / name).unlink()
            for name in sorted(changed, key=lambda name: name in manifests):
                (self._url / name).upload(self.folder / name)
                self._copied[name] = states[name]
            for name in self._copied.keys() - states.keys():
                (self._url / name).unlink()
                del self._copied[name]

    def _states(self) -> dict[str, State]:
        """Returns the complete files of the folder with their states."""
        states = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            temporary = any(part.endswith((".tmp", ".old")) for part in name.parts)
            if temporary or name.parts[0] in _OWN:
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    facts = path.stat()
                    states[name.as_posix()] = (facts.st_size, facts.st_mtime_ns)
        return states
