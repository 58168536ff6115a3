"""Importer of one split: executes a plan, checks in threads, and writes resumable shards.

The plan is cut into equal ranges, one per shard. A shard that exists is finished; its counts are in
a log in `.prepare/`. So a run that was stopped continues with the shards that are missing.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.files import write_atomically
from unclip_jax.data import dataset_manifest, image_codec, records
from unclip_jax.data.records import Record
from unclip_jax.preparation import import_report
from unclip_jax.preparation.checking import CheckConfig, check
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.items import Plan, Raw, Skip

LOGS = ".prepare"
RECORDS_PER_SHARD = 8192
_AHEAD = 8  # records in flight per thread

Outcome = Record | str  # a record, or the reason why there is none


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Settings of an import.

    Attributes:
        check: limits on records and the form in which they are stored.
        shards: number of files; 0 = one per 8,192 records.
        max_bad: share of records that may be skipped before the run stops.
        workers: checking threads; 0 = none.
    """

    check: CheckConfig = dataclasses.field(default_factory=CheckConfig)
    shards: int = 0
    max_bad: float = 0.05
    workers: int = 2

    def __post_init__(self):
        in_range("shards", self.shards, 0, 99_999)
        in_range("max_bad", self.max_bad, 0.0, 1.0)
        in_range("workers", self.workers, 0, 1024)


class Importer:
    """Writes one split of one folder."""

    def __init__(self, plan: Plan, *, directory: pathlib.Path, split: str, config: ImportConfig):
        """Prepares to write `split` into `directory`.

        Raises:
            UserError: the folder holds the beginning of another version of this split.
        """
        self._plan, self._directory, self._split = plan, directory, split
        self._config, self._logs = config, directory / LOGS
        shards = config.shards or -(-len(plan) // RECORDS_PER_SHARD)
        self._total = min(shards, len(plan))
        options = f"{plan.fingerprint} {config.check} {self._total}"
        self.fingerprint: str = hashlib.sha256(options.encode()).hexdigest()
        self.tally: Tally = Tally(others=dict(plan.others))
        for log in self._logs.glob(f"{split}-*.json"):
            if _read_json(log)["plan"] != self.fingerprint:
                raise UserError(
                    f"{directory} holds an unfinished split {split!r} of other inputs or "
                    "options; run that command again, or delete the folder."
                )

    def run(self, advance: Callable[[int], Any] = lambda count: None) -> dataset_manifest.Split:
        """Writes the missing shards; calls `advance` with numbers of records that are done.

        Raises:
            UserError: too many bad records, no good one, or a disk that is full or read-only.
        """
        try:
            shards = tuple(self._shard(index, advance) for index in range(self._total))
        finally:
            self._plan.close()
        if not self.tally.written:
            why = import_report.reasons(self.tally)
            why += self._plan.note
            raise UserError(f"split {self._split!r} would be empty: {why}; check the inputs.")
        return dataset_manifest.make_split(
            self._split,
            shards,
            plan=self.fingerprint,
            sources=self._plan.sources,
            signature=self._plan.signature or "",
            min_side=self.tally.min_side,
        )

    def differing_inputs(self, entry: dataset_manifest.Split) -> str:
        """Returns the keys between which the inputs differ from those of a split; "" = nowhere.

        The inputs are read where the file system does not tell that they are unchanged.
        """
        if self._has_signature(entry.signature) or not any(s.inputs for s in entry.shards):
            return ""
        try:
            for index, shard in enumerate(entry.shards):
                indices = self._range(index)
                if self._digest(indices) != shard.inputs:
                    keys = [self._plan.key(i) for i in (indices[0], indices[-1])]
                    return f"{keys[0]} .. {keys[1]}"
        finally:
            self._plan.close()
        return ""

    def forget(self) -> None:
        """Removes the logs, once the manifest lists the split."""
        for log in self._logs.glob(f"{self._split}-*.json"):
            log.unlink()

    def _shard(self, index: int, advance: Callable[[int], Any]) -> dataset_manifest.Shard:
        """Returns one shard, which is written unless it exists."""
        name = records.shard_name(self._split, index, self._total)
        path, log = self._directory / name, self._logs / f"{name}.json"
        indices = self._range(index)
        facts = _read_json(log) if path.is_file() and log.is_file() else None
        if facts is not None and self._is_current(facts, indices):
            self.tally.add(import_report.from_json(facts["tally"]))
            self._check_share()
            advance(len(indices))
        else:
            facts = self._write(path, indices, advance)
            log.parent.mkdir(exist_ok=True)
            _write_json(log, facts)
        return dataset_manifest.Shard(
            name, facts["written"], facts["sha256"], facts.get("inputs", "")
        )

    def _range(self, index: int) -> range:
        """Returns the indices of a shard's examples."""
        return range(*(len(self._plan) * i // self._total for i in (index, index + 1)))

    def _is_current(self, facts: dict[str, Any], indices: range) -> bool:
        """True if a finished shard was written from the inputs as they are now."""
        if self._has_signature(facts.get("signature")) or "inputs" not in facts:
            return True
        return self._digest(indices) == facts["inputs"]

    def _has_signature(self, signature: str | None) -> bool:
        """True if the file system states that the inputs are those with this signature."""
        return self._plan.signature is not None and self._plan.signature == signature

    def _digest(self, indices: range) -> str:
        """Reads examples and returns their digest as `_write` records it."""
        digest = hashlib.sha256()
        for index in indices:
            self._read(index, digest)
        return digest.hexdigest()

    def _check_share(self) -> None:
        import_report.check_share(
            self.tally,
            total=len(self._plan),
            max_bad=self._config.max_bad,
            note=self._plan.note,
        )

    def _write(
        self, path: pathlib.Path, indices: range, advance: Callable[[int], Any]
    ) -> dict[str, Any]:
        """Writes one shard; returns the content of its log."""
        tally, started, digest = Tally(), time.monotonic(), hashlib.sha256()
        summary = records.write_shard(path, self._good(indices, tally, advance, digest))
        tally.seconds = time.monotonic() - started
        self.tally.seconds += tally.seconds
        return {
            "plan": self.fingerprint,
            "signature": self._plan.signature,
            "inputs": digest.hexdigest(),
            "tally": tally.to_json(),
            **summary._asdict(),
        }

    def _good(
        self, indices: range, tally: Tally, advance: Callable[[int], Any], digest: Any
    ) -> Iterator[Record]:
        """Yields the records that can be used; counts the others."""
        both = (tally, self.tally)
        for index, outcome in zip(indices, self._outcomes(indices, digest), strict=True):
            advance(1)
            if isinstance(outcome, str):
                for each in both:
                    each.skip(self._plan.key(index), outcome)
                self._check_share()
            else:
                side = image_codec.short_side(outcome["image"])
                for each in both:
                    each.write(side)
                yield outcome

    def _outcomes(self, indices: range, digest: Any) -> Iterator[Outcome]:
        """Reads in this thread, checks in others, and yields in order."""
        if not self._config.workers:
            for index in indices:
                raw = self._read(index, digest)
                yield self._check(self._plan.key(index), raw)
            return
        with futures.ThreadPoolExecutor(self._config.workers) as pool:
            queue: collections.deque[futures.Future[Outcome]] = collections.deque()
            try:
                for index in indices:
                    raw = self._read(index, digest)
                    queue.append(pool.submit(self._check, self._plan.key(index), raw))
                    if len(queue) >= _AHEAD * self._config.workers:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, index: int, digest: Any) -> Raw | str:
        """Reads one example, or the reason why it cannot be; adds what was read to `digest`."""
        try:
            raw = self._plan.read(index)
        except Skip as skip:
            digest.update(repr((self._plan.key(index), skip.reason)).encode())
            return skip.reason
        facts = (self._plan.key(index), *raw[1:])
        digest.update(f"{len(raw.image)} {facts!r}".encode())
        digest.update(raw.image)
        return raw

    def _check(self, key: str, raw: Raw | str) -> Outcome:
        if isinstance(raw, str):
            return raw
        try:
            return check(key, raw, self._config.check)
        except Skip as skip:
            return skip.reason
        except Exception as error:  # a decoder's bug must not end a run of days
            return f"unexpected {type(error).__name__}"


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other imports out of `directory`, and removes leftovers of one that was killed.

    Raises:
        UserError: another import is running there.
    """
    logs = directory / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another prepare is writing to {directory}; wait for it.") from error
        for leftover in directory.glob("*.array_record.tmp"):
            leftover.unlink()
        yield
        if not any(logs.glob("*.json")):
            shutil.rmtree(logs)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, ensure_ascii=False))
