"""Checkpoints: the whole state and the data position, written in the background.

One checkpoint is one folder `checkpoints/STEP` that appears by renaming when it is complete, so a
killed run leaves whole checkpoints or none. It holds three items: `state` (arrays), `data` (the
position of the data, JSON) and `meta` (what the arrays are and their checksum, JSON). A checkpoint
that cannot be read or whose bits have changed is set aside and the one before is used.

Storage that refuses, because it is full or out of reach, is tried again: at once after a pause
where a save could not begin, with the next save where one failed in the background. Of several
processes one cannot try alone, so there the first failure in the background ends the run.
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

from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import num_bytes
from unclip_jax.parallel.place import size_text
from unclip_jax.training import orbax_logging
from unclip_jax.training.fingerprint import checksum, describe_tree
from unclip_jax.training.state import TrainState

TRIES = 4  # of every save, and failures in the background in a row
PAUSE = 4.0  # seconds before the second try; three times as long before each further one

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A state, and the position from which its data continue."""

    state: TrainState
    position: Any


class Damaged(Exception):
    """A checkpoint that is there but cannot be used; never leaves this module."""


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save."""

    def __init__(self, workdir: pathlib.Path, *, keep: int):
        """Open (or make) `workdir/checkpoints`; the newest `keep` checkpoints are kept.

        Raises:
            UserError: the folder cannot be made.
        """
        self.folder = workdir.absolute() / "checkpoints"
        self._aside = workdir.absolute() / "damaged"
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._failures = 0  # in a row, in the background
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
            with contextlib.suppress(Exception):  # the error before it matters more
                self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, position: Any) -> None:
        """Copy `state` to the host, then write it in the background.

        Args:
            step: names the checkpoint; nothing happens if it is there already.
            state: may be donated as soon as this returns.
            position: of the data after `step` batches; JSON-ready or bytes.

        Raises:
            UserError: this checkpoint, or several before it, could not be written.
        """
        self._settle()
        if step not in self.steps:
            meta = {"checksum": checksum(state), "tree": describe_tree(state)}
            self._tried(lambda: self._begin(step, state, encode_position(position), meta))

    def save_now(self, step: int, state: TrainState, *, position: Any) -> None:
        """`save`, and wait until it is complete.

        Raises:
            UserError: it could not be written.
        """

        def once() -> None:
            self.save(step, state, position=position)
            self.wait()

        self._tried(once)

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

    def _settle(self) -> None:
        """Wait for the save before this one; if it failed, this one takes its place."""
        try:
            self.wait()
            self._failures = 0
        except UserError as error:
            self._failures += 1
            if jax.process_count() > 1 or self._failures == TRIES:
                raise
            log.warning("%s Trying again with this step's.", error)
            self._reopen()

    def _tried(self, once: Callable[[], None]) -> None:
        """Do it, several times if need be; with several processes as often as all of them do."""
        pause = PAUSE
        for left in reversed(range(TRIES if jax.process_count() == 1 else 1)):
            try:
                return once()
            except UserError as error:
                if not left:
                    raise
                log.warning("%s Trying again in %g s.", error, pause)
            time.sleep(pause)
            pause *= 3
            self._reopen()

    def _reopen(self) -> None:
        """A manager that has failed remembers it; a new one sees what is there."""
        with contextlib.suppress(Exception):
            self._manager.close()
        with self._storage("open"):
            self._manager = ocp.CheckpointManager(self.folder, options=self._options)

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            UserError: it failed.
        """
        with self._storage("write"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract: TrainState) -> Restored | None:
        """The newest checkpoint that can be read, or None where there is none at all.

        Args:
            abstract: ShapeDtypeStructs with the shardings on which arrays shall arrive; these may
                differ from the ones that were saved.

        Raises:
            UserError: checkpoints of another model, or none that can be read.
        """
        broken: list[int] = []
        for step in reversed(self.steps):
            try:
                restored = self._read(step, abstract)
            except Damaged as damage:
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

    def _read(self, step: int, abstract: TrainState) -> Restored:
        """One checkpoint, verified."""
        with _damage():
            items = ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
            small = self._manager.restore(step, args=items)
            position = decode_position(small["data"])
            expected, tree = small["meta"]["checksum"], small["meta"]["tree"]
        self._check_tree(step, tree, describe_tree(abstract))
        with _damage():
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=items)["state"]
        if checksum(state) != expected:
            raise Damaged("its bits are not the ones that were saved")
        return Restored(state, position)

    def _check_tree(self, step: int, there: dict[str, str], here: dict[str, str]) -> None:
        for path in sorted(there.keys() | here.keys()):
            a, b = there.get(path, "absent"), here.get(path, "absent")
            if a != b:
                raise UserError(
                    f"{self.folder / str(step)} was made by another model: {path} is {a} there and "
                    f"{b} here. Use the code and config that made it, or another --workdir."
                )

    def _set_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints out of the way of new ones of the same step; delete nothing."""
        if not steps:
            return
        if jax.process_index() == 0:
            with self._storage("move damaged checkpoints in"):
                self._aside.mkdir(exist_ok=True)
                for step in steps:
                    taken = len(list(self._aside.glob(f"{step}-*")))
                    (self.folder / str(step)).rename(self._aside / f"{step}-{taken}")
        self._manager.reload()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{size_text(needed)} needed, {size_text(free)} free on the disk")

    @contextlib.contextmanager
    def _storage(self, verb: str) -> Iterator[None]:
        """Any failure in here is the storage's: one line, and what to do."""
        try:
            yield
        except Exception as error:
            raise UserError(
                f"cannot {verb} checkpoints in {self.folder}: {_reason(error)}. Existing "
                "checkpoints are untouched; free space or mend the folder, then run the same "
                "command again."
            ) from error


def encode_position(position: Any) -> dict[str, Any]:
    """A data position as JSON; bytes become base64."""
    if isinstance(position, bytes):
        return {"base64": base64.b64encode(position).decode("ascii")}
    return {"json": position}


def decode_position(stored: dict[str, Any]) -> Any:
    """The inverse of `encode_position`."""
    if "base64" in stored:
        return base64.b64decode(stored["base64"])
    return stored["json"]


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Damaged(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, short enough for one line of ours."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return (text if len(text) <= 160 else text[:160] + "...").rstrip(".")
