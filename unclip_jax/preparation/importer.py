"""Importer of one split in this process: writes the shards of a plan, and can be resumed.

The plan is divided into equal ranges, one per shard (`shard_writer.ShardWriter`).
"""

import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from unclip_jax.core import object_lock
from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.core.object_lock import Locked, ObjectLock
from unclip_jax.core.storage import Url
from unclip_jax.data import dataset_manifest, records
from unclip_jax.preparation import import_report
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.items import Plan
from unclip_jax.preparation.shard_writer import (
    LOGS,
    ImportConfig,
    ShardWriter,
    same_signature,
    share,
)

RECORDS_PER_SHARD = 8192
_LOCK = "lock"


class Importer:
    """Writes one split of one folder."""

    def __init__(self, plan: Plan, *, folder: Folder, split: str, config: ImportConfig):
        """Prepares to write `split` into `folder`.

        Raises:
            UserError: the folder contains an unfinished split of other inputs or options.
        """
        self._plan, self._split = plan, split
        self._total = shard_count(plan, config)
        self.fingerprint: str = plan_fingerprint(plan, config)
        check_logs(folder, split, self.fingerprint)
        self._writer = ShardWriter(
            plan,
            folder=folder,
            config=config,
            fingerprint=self.fingerprint,
            expected=len(plan),
        )

    @property
    def tally(self) -> Tally:
        """Counts of the split so far."""
        return self._writer.tally

    def run(self, advance: Callable[[int], Any] = lambda count: None) -> dataset_manifest.Split:
        """Writes the missing shards; calls `advance` with the number of records just finished.

        Raises:
            UserError: too many records are bad, none is good, or the disk is full or read-only.
        """
        names = [records.shard_name(self._split, i, self._total) for i in range(self._total)]
        try:
            logs = [
                self._writer.write(name, self._range(index), advance)
                for index, name in enumerate(names)
            ]
        finally:
            self._plan.close()
        if not self.tally.written:
            raise empty_split(self._split, self.tally, self._plan.note)
        shards = (
            dataset_manifest.Shard(name, log["written"], log["sha256"], log.get("inputs", ""))
            for name, log in zip(names, logs, strict=True)
        )
        return dataset_manifest.make_split(
            self._split,
            tuple(shards),
            plan=self.fingerprint,
            sources=self._plan.sources,
            signature=self._plan.signature or "",
            min_side=self.tally.min_side,
        )

    def differing_inputs(self, entry: dataset_manifest.Split) -> str:
        """Returns the keys between which the inputs differ from those of a split; "" if equal.

        Inputs are read again only if the file system does not show that they are unchanged.
        """
        if same_signature(self._plan.signature, entry.signature) or not any(
            s.inputs for s in entry.shards
        ):
            return ""
        try:
            for index, shard in enumerate(entry.shards):
                indices = self._range(index)
                if self._writer.digest(indices) != shard.inputs:
                    keys = [self._plan.key(i) for i in (indices[0], indices[-1])]
                    return f"{keys[0]} .. {keys[1]}"
        finally:
            self._plan.close()
        return ""

    def _range(self, index: int) -> range:
        """Returns the indices of a shard's examples."""
        return share(len(self._plan), index, self._total)


def shard_count(plan: Plan, config: ImportConfig) -> int:
    """Returns the number of shards of a plan."""
    return min(config.shards or -(-len(plan) // RECORDS_PER_SHARD), len(plan))


def plan_fingerprint(plan: Plan, config: ImportConfig) -> str:
    """Returns the fingerprint of a split that is written from a plan."""
    options = f"{plan.fingerprint} {config.options} {shard_count(plan, config)}"
    return hashlib.sha256(options.encode()).hexdigest()


def check_logs(folder: Folder, split: str, fingerprint: str) -> None:
    """Checks that finished shards of an unfinished split were written from the same plan.

    Raises:
        UserError: they were not.
    """
    names = _logs(folder, f"{split}-", ".json")
    for content in folder.read_all(names):
        if content is not None and json.loads(content)["plan"] != fingerprint:
            raise other_version(folder, split)


def other_version(folder: Folder, split: str) -> UserError:
    """Returns the error for a split that was begun with other inputs or options."""
    return UserError(
        f"{folder} holds an unfinished split {split!r} of other inputs or options; run that "
        "command again, or delete the folder."
    )


def empty_split(split: str, tally: Tally, note: str = "") -> UserError:
    """Returns the error for a split without a good record."""
    why = import_report.reasons(tally) + note
    return UserError(f"split {split!r} would be empty: {why}; check the inputs.")


def forget(folder: Folder, split: str) -> None:
    """Removes the logs of a split once it is in the manifest."""
    folder.remove([*_logs(folder, f"{split}-"), *_logs(folder, f"{split}.")])


def _logs(folder: Folder, start: str, end: str = "") -> list[str]:
    """Returns the names of files beside the logs with this beginning and end."""
    names = folder.names(LOGS)
    return [f"{LOGS}/{name}" for name in names if name.startswith(start) and name.endswith(end)]


@contextlib.contextmanager
def locked(folder: Folder, *, part: str = "") -> Iterator[None]:
    """Locks `folder` against other imports, and removes temporary files of one that was killed.

    Args:
        folder: folder of the data set.
        part: name of a part of the shards, if other processes write other parts at the same time;
            "" = all shards.

    Raises:
        UserError: another import is running there, or of the same part.
    """
    if isinstance(folder.place, Url):
        with _locked_objects(folder.place, part):
            yield
        return
    directory = folder.place
    logs = directory / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        kind = fcntl.LOCK_SH if part else fcntl.LOCK_EX
        _lock(stack, logs / _LOCK, kind, directory)
        if part:
            _lock(stack, logs / f"{_LOCK}.{part}", fcntl.LOCK_EX, directory)
            yield
            return
        for kind in ("array_record", "tar_index"):
            for leftover in directory.glob(f"*.{kind}.tmp"):
                leftover.unlink()
        yield
        if not any(logs.glob("*.json")):
            shutil.rmtree(logs)


@contextlib.contextmanager
def _locked_objects(url: Url, part: str) -> Iterator[None]:
    """Locks a folder in a store against other imports.

    Every process creates a lock and then looks for others, so of two that begin at the same moment
    at most one continues.
    """
    logs = url / LOGS
    own = f"{_LOCK}.{part}" if part else _LOCK
    try:
        lock = ObjectLock(logs / own)
    except Locked as error:
        raise UserError(f"another prepare is writing to {url}: {error}; wait for it.") from None
    try:
        others = {_LOCK} if part else {n for n in logs.names() if n.startswith(f"{_LOCK}.")}
        holder = object_lock.live([logs / name for name in others])
        if holder:
            who = object_lock.describe(holder)
            raise UserError(f"another prepare is writing to {url}: {who}; wait for it.")
        if not part:
            for name in others:
                (logs / name).unlink()
        yield
    finally:
        lock.release()


def _lock(
    stack: contextlib.ExitStack, path: pathlib.Path, kind: int, directory: pathlib.Path
) -> None:
    lock = stack.enter_context(path.open("w"))
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another prepare is writing to {directory}; wait for it.") from error
