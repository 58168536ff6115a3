"""Checkpoints: the training state and the data position, written in the background.

A checkpoint is a folder `checkpoints/STEP` that is renamed into place when complete, so a killed
run leaves complete checkpoints or none. It contains `state` (arrays), `data` (the data position,
JSON) and `meta` (JSON: shapes, dtypes and checksum of the arrays, digest of the data position,
step, and a digest of all of these). A checkpoint that cannot be read or does not match its digests
is set aside, and the previous one is used.

Failures of the storage are retried: after a pause if a save could not start, with the next save if
it failed in the background. With several processes one cannot retry alone, so the first failure in
the background ends the run.
"""

import base64
import contextlib
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from unclip_jax.core import digests
from unclip_jax.core.checks import UserError
from unclip_jax.core.files import regular_files
from unclip_jax.core.storage import Location, Url
from unclip_jax.core.trees import num_bytes
from unclip_jax.parallel.place import size_text
from unclip_jax.training import orbax_logging, replica_restore
from unclip_jax.training.fingerprint import checksum, describe_tree
from unclip_jax.training.state import TrainState
from unclip_jax.training.workdir import TakenOver

TRIES = 4  # attempts per save, and consecutive failures in the background
PAUSE = 4.0  # seconds before the second attempt; tripled before each further one

log = logging.getLogger(__name__)


class RestoredState(NamedTuple):
    """A restored state and its data position."""

    state: TrainState
    position: Any


class DamagedCheckpoint(Exception):
    """A checkpoint that exists but cannot be used; internal to this module."""


class Checkpoints:
    """The checkpoints of one run; as a context manager, it waits for the last save."""

    def __init__(
        self,
        workdir: Location,
        *,
        keep: int,
        keep_every: int = 0,
        single_replica: bool = False,
        before_save: Callable[[], None] = lambda: None,
    ):
        """Opens or creates `workdir/checkpoints`, which keeps the newest `keep` checkpoints.

        Args:
            workdir: a folder, or a URL of Google's object store.
            keep: number of newest checkpoints to keep.
            keep_every: checkpoints at multiples of this step are kept too; 0 = none.
            single_replica: True restores with `replica_restore`.
            before_save: called before every checkpoint is written.

        Raises:
            UserError: the folder cannot be created.
        """
        self._before_save, self._remote = before_save, isinstance(workdir, Url)
        self._single_replica = single_replica
        root = epath.Path(str(workdir) if isinstance(workdir, Url) else workdir.absolute())
        self.folder, self._aside = root / "checkpoints", root / "damaged"
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._failures = 0  # consecutive failures in the background
        orbax_logging.install_filters()
        with self._storage("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=self._options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            with contextlib.suppress(Exception):  # the first error is more important
                self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, position: Any) -> None:
        """Copies `state` to the host and writes it in the background.

        Args:
            step: name of the checkpoint; an existing one is kept.
            state: may be donated as soon as this returns.
            position: data position after `step` batches; JSON-ready or bytes.

        Raises:
            UserError: this checkpoint, or several before it, could not be written.
        """
        self._finish_previous()
        if step not in self.steps:
            self._retry(self._before_save)
            stored = encode_position(position)
            meta = describe(step, state, stored)
            self._retry(lambda: self._begin(step, state, stored, meta))

    def save_now(self, step: int, state: TrainState, *, position: Any) -> None:
        """Saves and waits for completion.

        Raises:
            UserError: it could not be written.
        """

        def attempt() -> None:
            self.save(step, state, position=position)
            self.wait()

        self._retry(attempt)

    def _begin(self, step: int, state: TrainState, position: Any, meta: Any) -> None:
        with self._storage("write"):
            self._check_space(num_bytes(state))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(position),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def _finish_previous(self) -> None:
        """Waits for the previous save; if it failed, the current save replaces it."""
        try:
            self.wait()
            self._failures = 0
        except UserError as error:
            self._failures += 1
            if jax.process_count() > 1 or self._failures == TRIES:
                raise
            log.warning("%s Trying again with this step's.", error)
            self._reopen()

    def _retry(self, attempt: Callable[[], None]) -> None:
        """Calls `attempt` until it succeeds, at most `TRIES` times; once with several processes."""
        pause = PAUSE
        for left in reversed(range(TRIES if jax.process_count() == 1 else 1)):
            try:
                return attempt()
            except TakenOver:
                raise
            except UserError as error:
                if not left:
                    raise
                log.warning("%s Trying again in %g s.", error, pause)
            time.sleep(pause)
            pause *= 3
            self._reopen()

    def _reopen(self) -> None:
        """Replaces the manager, because it stores its first error."""
        with contextlib.suppress(Exception):
            self._manager.close()
        with self._storage("open"):
            self._manager = ocp.CheckpointManager(self.folder, options=self._options)

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
            UserError: the save failed.
        """
        with self._storage("write"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract: TrainState) -> RestoredState | None:
        """Restores the newest readable checkpoint; None if there is no checkpoint.

        Args:
            abstract: ShapeDtypeStructs with the shardings of the result, which may differ from
                those of the saved state.

        Raises:
            UserError: the checkpoints belong to another model, or none is readable.
        """
        broken: list[int] = []
        for step in reversed(self.steps):
            try:
                restored = self._read(step, abstract)
            except DamagedCheckpoint as damage:
                log.warning("checkpoint %s is damaged (%s); trying the one before", step, damage)
                broken.append(step)
                continue
            self._set_aside(broken)
            return restored
        if broken:
            raise UserError(
                f"none of the checkpoints {broken} in {self.folder} can be read; restore them from "
                "a copy, or start again with another --workdir."
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> RestoredState:
        """Reads one checkpoint and verifies it."""
        with _damage():
            if not self._remote:  # reading a named pipe would block
                regular_files(pathlib.Path(self.folder / str(step)))
            items = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
            small = self._manager.restore(step, args=items)
            _check_meta(small["meta"], step, small["data"])
            position = decode_position(small["data"])
            expected, tree = small["meta"]["checksum"], small["meta"]["tree"]
        self._check_tree(step, tree, describe_tree(abstract))
        with _damage():
            if self._single_replica:
                state = replica_restore.restore(self.folder / str(step) / "state", abstract)
            else:
                items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                state = self._manager.restore(step, args=items)["state"]
        if checksum(state) != expected:
            raise DamagedCheckpoint("its checksum differs from the one that was saved")
        return RestoredState(state, position)

    def _check_tree(self, step: int, stored: dict[str, str], expected: dict[str, str]) -> None:
        for path in sorted(stored.keys() | expected.keys()):
            a, b = stored.get(path, "absent"), expected.get(path, "absent")
            if a != b:
                raise UserError(
                    f"{self.folder / str(step)} belongs to another model: its {path} is {a}, this "
                    f"model's {b}. Use the code and config that wrote it, or another --workdir."
                )

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints to another folder, so that their steps can be saved again."""
        if not steps:
            return
        if jax.process_index() == 0:
            with self._storage("move damaged checkpoints in"):
                self._aside.mkdir(exist_ok=True)
                for step in steps:
                    taken = len(list(self._aside.glob(f"{step}-*")))
                    target = self._aside / f"{step}-{taken}"
                    if self._remote:  # object stores cannot rename folders
                        Url(str(self.folder / str(step))).move(Url(str(target)))
                    else:
                        (self.folder / str(step)).rename(target)
        self._manager.reload()

    def _check_space(self, needed: int) -> None:
        if self._remote:
            return
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{size_text(needed)} needed, {size_text(free)} free on the disk")

    @contextlib.contextmanager
    def _storage(self, verb: str) -> Iterator[None]:
        """Turns any failure of the storage into a UserError."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"cannot {verb} checkpoints in {self.folder}: {_reason(error)}. Existing "
                "checkpoints are untouched; free space or repair the folder, then run the same "
                "command again."
            ) from error


def describe(step: int, state: TrainState, position: Any) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint with the encoded `position`."""
    meta = {
        "checksum": checksum(state),
        "tree": describe_tree(state),
        "step": step,
        "position": digests.of_json(position),
    }
    return {**meta, "digest": digests.of_json(meta)}


def _check_meta(meta: dict[str, Any], step: int, position: Any) -> None:
    """Compares step, position and `meta` itself with the saved digests.

    Raises:
        DamagedCheckpoint: one of them differs.
    """
    if meta.keys() == {"checksum", "tree"}:  # version 0.1.0 had no digests
        return
    covered = {name: value for name, value in meta.items() if name != "digest"}
    if meta["digest"] != digests.of_json(covered):
        raise DamagedCheckpoint("its description differs from the one that was saved")
    if meta["step"] != step:
        raise DamagedCheckpoint(f"it was saved as the checkpoint of step {meta['step']}")
    if meta["position"] != digests.of_json(position):
        raise DamagedCheckpoint("its data position differs from the one that was saved")


def encode_position(position: Any) -> dict[str, Any]:
    """Encodes a data position as JSON; bytes become base64."""
    if isinstance(position, bytes):
        return {"base64": base64.b64encode(position).decode("ascii")}
    return {"json": position}


def decode_position(stored: dict[str, Any]) -> Any:
    """Inverts `encode_position`."""
    if "base64" in stored:
        return base64.b64decode(stored["base64"])
    return stored["json"]


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except DamagedCheckpoint:
        raise
    except Exception as error:
        raise DamagedCheckpoint(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Returns the first line of an error message, shortened."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return (text if len(text) <= 160 else text[:160] + "...").rstrip(".")
