"""Writer of shards: checks a range of a plan's examples in threads and writes the good ones.

A shard that exists is finished. Its log in `.prepare/` contains its counts and the digest of the
inputs from which it was written. The same call again returns the log, so an interrupted run
continues with the missing shards.
"""

import collections
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt64

from unclip_jax.core.checks import UserError, in_range, one_of
from unclip_jax.core.folder import Folder
from unclip_jax.data import image_codec, records, tar_index
from unclip_jax.data.records import Record
from unclip_jax.data.tar_index import Place, ReadOptions
from unclip_jax.preparation import duplicates, import_report
from unclip_jax.preparation.checking import CheckConfig, check
from unclip_jax.preparation.import_plans import FilePlan
from unclip_jax.preparation.import_report import Tally
from unclip_jax.preparation.items import Plan, RawExample, Skip

LOGS = ".prepare"
_AHEAD = 8  # records in flight per thread


class CheckedRecord(NamedTuple):
    """A record that can be used.

    Attributes:
        record: the record.
        image_hash: hash by which duplicates of its image are recognised.
        place: range of its members in a tar, for an index.
    """

    record: Record
    image_hash: int
    place: Place | None


Outcome = CheckedRecord | str  # a record, or the reason to skip the example


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Settings of an import.

    Attributes:
        check: limits on records and the form in which they are stored.
        shards: number of files; 0 = one per 8,192 records, or per `shard_mb` of archives.
        max_bad: share of records that may be skipped before the run stops.
        workers: checking threads; 0 = none.
        dedup: duplicates of images to leave out: "none", "exact" (the same bytes) or "perceptual"
            (the same perceptual hash).
        index: stores the positions of records in their tars, and no images.
        shard_mb: approximate size in MB of the archives of one shard, if all archives together are
            larger and therefore prepared file by file.
    """

    check: CheckConfig = dataclasses.field(default_factory=CheckConfig)
    shards: int = 0
    max_bad: float = 0.05
    workers: int = 2
    dedup: str = "none"
    index: bool = False
    shard_mb: float = 512.0

    def __post_init__(self):
        in_range("--shards", self.shards, 0, 99_999)
        in_range("--max-bad", self.max_bad, 0.0, 1.0)
        in_range("--workers", self.workers, 0, 1024)
        one_of("--dedup", self.dedup, duplicates.KINDS)
        in_range("--shard-mb", self.shard_mb, 1e-6, 1e6)
        if self.index and (self.check.max_side or self.check.image_size or self.shards):
            raise UserError(
                "--index leaves images in their tars, as they are; leave out --max-side, "
                "--image-size and --shards."
            )

    @property
    def options(self) -> str:
        """The settings that affect the output, for fingerprints."""
        dedup = f" dedup={self.dedup}" if self.dedup != "none" else ""
        return f"{self.check}{dedup}{' index' if self.index else ''}"


class ShardWriter:
    """Writes shards of one plan.

    Attributes:
        tally: counts over all shards so far.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        folder: Folder,
        config: ImportConfig,
        fingerprint: str,
        expected: int = 0,
        signature: str | None = None,
        hashes: bool = False,
        read_options: ReadOptions | None = None,
    ):
        """Prepares to write into `folder`.

        Args:
            plan: the examples.
            folder: folder of the data set.
            config: checks of records, and how they are stored.
            fingerprint: fingerprint of the split, which every log contains.
            expected: number of records of which `config.max_bad` is a share; 0 = no limit.
            signature: signature of the files that the plan reads; None = that of the plan.
            hashes: True writes the hashes of keys and images beside the log, to find duplicates in
                other shards.
            read_options: options of an index.
        """
        self._read_options = read_options or ReadOptions()
        self._signature = plan.signature if signature is None else signature
        self.tally = Tally(others=dict(plan.others))
        self._plan, self._folder, self._config = plan, folder, config
        self._fingerprint, self._expected, self._hashes = fingerprint, expected, hashes

    def write(
        self, name: str, indices: range, advance: Callable[[int], Any] = lambda count: None
    ) -> dict[str, Any]:
        """Writes the shard of the examples `indices` unless it exists; returns its log.

        Raises:
            UserError: too many records are bad, or the disk is full or read-only.
        """
        facts = finished_log(self._folder, name)
        if facts is not None and self._is_current(facts, indices):
            self.tally.add(import_report.from_json(facts["tally"]))
            self._check_share()
            advance(len(indices))
            return facts
        facts = self._write(name, indices, advance)
        write_log(self._folder, name, facts)
        return facts

    def digest(self, indices: range) -> str:
        """Reads examples and returns their digest, as in a log."""
        digest = hashlib.sha256()
        for index in indices:
            self._read(index, digest)
        return digest.hexdigest()

    def _is_current(self, facts: dict[str, Any], indices: range) -> bool:
        """True if a finished shard was written from the current inputs."""
        if same_signature(self._signature, facts.get("signature")) or "inputs" not in facts:
            return True
        return self.digest(indices) == facts["inputs"]

    def _check_share(self) -> None:
        if self._expected:
            import_report.check_share(
                self.tally,
                total=self._expected,
                max_bad=self._config.max_bad,
                note=self._plan.note,
            )

    def _write(self, name: str, indices: range, advance: Callable[[int], Any]) -> dict[str, Any]:
        """Writes one shard; returns the content of its log."""
        tally, started, digest = Tally(), time.monotonic(), hashlib.sha256()
        hashes: list[tuple[int, int]] = []
        good = self._good(indices, tally, advance, digest)
        with self._folder.output(name) as path:
            if self._config.index:
                hashed = self._hashed(good, hashes)
                rows = ((one.record, one.place) for one in hashed if one.place is not None)
                summary = tar_index.write_index(path, rows, options=self._read_options)
            else:
                stored = (one.record for one in self._hashed(good, hashes))
                summary = records.write_shard(path, stored)
            size = path.stat().st_size
        if self._hashes:
            write_hashes(self._folder, name, np.array(hashes, np.uint64).reshape(-1, 2))
        tally.seconds = time.monotonic() - started
        self.tally.seconds += tally.seconds
        return {
            "plan": self._fingerprint,
            "signature": self._signature,
            "inputs": digest.hexdigest(),
            "tally": tally.to_json(),
            "size": size,
            **summary._asdict(),
        }

    def _hashed(
        self, good: Iterator[CheckedRecord], hashes: list[tuple[int, int]]
    ) -> Iterator[CheckedRecord]:
        """Yields the records; appends the hashes of their keys and images to `hashes`."""
        for one in good:
            if self._hashes:
                key = records.digest_64(one.record["key"].encode())
                hashes.append((key, one.image_hash))
            yield one

    def _good(
        self, indices: range, tally: Tally, advance: Callable[[int], Any], digest: Any
    ) -> Iterator[CheckedRecord]:
        """Yields the records that can be used, and counts the others."""
        both = (tally, self.tally)
        for index, outcome in zip(indices, self._outcomes(indices, digest), strict=True):
            advance(1)
            if isinstance(outcome, str):
                for each in both:
                    each.skip(self._plan.key(index), outcome)
                self._check_share()
            else:
                side = image_codec.short_side(outcome.record["image"])
                for each in both:
                    each.write(side)
                yield outcome

    def _outcomes(self, indices: range, digest: Any) -> Iterator[Outcome]:
        """Reads in this thread, checks in other threads, and yields outcomes in order."""
        if not self._config.workers:
            for index in indices:
                raw = self._read(index, digest)
                yield self._check(index, raw)
            return
        with futures.ThreadPoolExecutor(self._config.workers) as pool:
            queue: collections.deque[futures.Future[Outcome]] = collections.deque()
            try:
                for index in indices:
                    raw = self._read(index, digest)
                    queue.append(pool.submit(self._check, index, raw))
                    if len(queue) >= _AHEAD * self._config.workers:
                        yield queue.popleft().result()
                while queue:
                    yield queue.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, index: int, digest: Any) -> RawExample | str:
        """Reads one example and adds it to `digest`; returns the reason if it cannot be read."""
        try:
            raw = self._plan.read(index)
        except Skip as skip:
            digest.update(repr((self._plan.key(index), skip.reason)).encode())
            return skip.reason
        facts = (self._plan.key(index), *raw[1:6], *([raw.facts] if raw.facts else ()))
        digest.update(f"{len(raw.image)} {facts!r}".encode())
        digest.update(raw.image)
        return raw

    def _check(self, index: int, raw: RawExample | str) -> Outcome:
        if isinstance(raw, str):
            return raw
        try:
            record = check(self._plan.key(index), raw, self._config.check)
            place = self._place(index, record) if self._config.index else None
            image_hash = duplicates.image_hash(record["image"], self._config.dedup)
            return CheckedRecord(record, image_hash, place)
        except Skip as skip:
            return skip.reason
        except Exception as error:  # a bug in a decoder must not end a long run
            return f"unexpected {type(error).__name__}"

    def _place(self, index: int, record: Record) -> Place:
        """Returns the range from which an index reads exactly this record.

        Raises:
            Skip: there is no such range.
        """
        plan = self._plan
        if not isinstance(plan, FilePlan) or (span := plan.span(index)) is None:
            raise Skip("members that are not side by side")
        data = tar_index.read_range(span.path, span.offset, span.size)
        if tar_index.parse_sample(data, self._read_options, tar=span.path) != record:
            raise Skip("a form that --index cannot read")
        return Place(plan.origin(span.path), span.offset, span.size, records.digest_64(data))


def same_signature(one: str | None, other: str | None) -> bool:
    """True if the inputs with these signatures have the same paths, sizes and times."""
    return one is not None and one == other


def share(count: int, part: int, parts: int) -> range:
    """Returns the indices of part `part` of `parts` nearly equal parts of `count` examples."""
    return range(*(count * i // parts for i in (part, part + 1)))


def hash_name(shard: str) -> str:
    """Returns the name of the file with the hashes of a shard's records."""
    return f"{LOGS}/{shard}.npy"


def log_name(shard: str) -> str:
    """Returns the name of the log of a shard."""
    return f"{LOGS}/{shard}.json"


def finished_log(folder: Folder, shard: str) -> dict[str, Any] | None:
    """Returns the log of a shard; None unless the shard is complete."""
    content = folder.read(log_name(shard))
    if content is None:
        return None
    facts = json.loads(content)
    size = folder.size(shard)
    return facts if size is not None and size == facts.get("size", size) else None


def write_log(folder: Folder, shard: str, facts: dict[str, Any]) -> None:
    """Writes the log of a shard, which marks it as finished."""
    folder.write(log_name(shard), json.dumps(facts, ensure_ascii=False))


def write_hashes(folder: Folder, shard: str, hashes: UInt64[np.ndarray, "n 2"]) -> None:
    """Writes the hashes (key, image) of a shard's records."""
    with folder.output(hash_name(shard)) as path:
        duplicates.write_hashes(path, hashes)
