"""Loader of batches for one of several processes, in a fixed and resumable global order.

The order is one stream of examples for the whole run: the data set, shuffled anew for every epoch,
one epoch after the other. Batch i is the i-th range of `batch_size` examples, of which every
process loads its own contiguous part. The randomness of an example depends on the seed and its
position in the stream. The state is therefore one number, and a resumed run, even with another
number of processes, reads the same batches as one that was not interrupted.

With several data sets the stream takes one example from each in turn, or in proportion to their
weights, so every batch has the same shares of them whatever their sizes. Each is shuffled and
repeated on its own.
"""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
from absl import flags

from unclip_jax.core.checks import UserError, divisible, in_range, one_of, positive
from unclip_jax.core.types import HostBatch
from unclip_jax.data.dataset import Source
from unclip_jax.data.examples import (
    Example,
    ExampleConfig,
    FixedExamples,
    RandomPart,
    collate,
)
from unclip_jax.tokenization.bpe_dropout import BpeDropout
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

TOGETHER = 8  # examples per work item of a thread
REMAINDERS = ("drop", "keep", "pad")

Finish = Callable[[HostBatch], HostBatch]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """Settings of the loader.

    Attributes:
        batch_size: examples per batch over all processes.
        shuffle: True draws a new order for every epoch; False keeps the order of the source.
        num_epochs: number of epochs; None = endless.
        seed: seed of the order and of all random parts of examples.
        remainder: treatment of the examples after the last full batch. "drop" leaves them out;
            "keep" yields a smaller last batch (one process only); "pad" fills the last batch with
            copies of the last example and adds a bool field "valid" (one unshuffled epoch only).
        workers: decoding threads; 0 = decode in the calling thread.
        processes: decoding processes, each with `workers` threads and a cache of its own; 0 =
            none.
        group: number of neighbouring records that stay together in shuffling, so that a
            contrastive batch contains hard negatives; an incomplete last group is left out.
        prefetch: batches that are read ahead. Their examples are read concurrently by all threads,
            which hides the latency of remote storage.
        cache_mb: memory for decoded and resized images in MiB, so that small data sets are decoded
            once.
        weights: proportions of the data sets of a mixture; () = equal.
    """

    batch_size: int
    shuffle: bool = True
    num_epochs: int | None = None
    seed: int = 0
    remainder: str = "drop"
    workers: int = 2
    processes: int = 0
    group: int = 1
    prefetch: int = 4
    cache_mb: int = 0
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        positive("batch_size", self.batch_size)
        one_of("remainder", self.remainder, REMAINDERS)
        positive("group", self.group)
        if self.num_epochs is not None:
            positive("num_epochs", self.num_epochs)
        for name in ("workers", "processes", "prefetch", "cache_mb"):
            in_range(name, getattr(self, name), 0, 1_000_000)
        for weight in self.weights:
            positive("weights", weight)
        if self.remainder == "pad" and (self.shuffle or self.num_epochs != 1):
            raise UserError("remainder 'pad' needs shuffle=False and num_epochs=1.")


class Loader(Iterator[HostBatch]):
    """Iterates over this process's part of every batch; see `make_loader`."""

    def __init__(
        self,
        share: "_Share",
        *,
        config: LoaderConfig,
        fields: tuple[str, ...],
        identity: dict[str, Any],
        origin: Mapping[str, str],
        finish: Finish | None,
    ):
        """Wraps the examples of one process; `origin` and `finish` as in `make_loader`."""
        self._share, self._config, self._fields = share, config, fields
        self.origin = dict(origin)
        self._identity = {**identity, **origin}
        self._finish = finish
        self._position, self._iterator = 0, None

    def __next__(self) -> HostBatch:
        if self._iterator is None:
            self._iterator = iter(self._dataset(self._position))
        try:
            batch = next(self._iterator)
        except UserError as error:  # Grain appends lines about tracebacks
            raise UserError(str(error).partition("\n")[0]) from error
        self._position += 1
        return self._finish(batch) if self._finish else batch

    def __len__(self) -> int:
        """Returns the number of batches from the beginning; about sys.maxsize if endless."""
        return self._share.batches()

    def get_state(self) -> dict[str, Any]:
        """Returns the position, JSON-ready: the number of batches so far and their settings."""
        return {**self._identity, "batches": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved position.

        Positions of earlier versions do not contain the origin of the data.

        Raises:
            UserError: it was saved with other data, another seed or another batch size.
        """
        for name, value in self._identity.items():
            if name in self.origin and name not in state:
                continue
            if state.get(name) != value:
                raise UserError(
                    f"the data position was saved with {name} = {state.get(name)!r}, now it is "
                    f"{value!r}; use the same setting or start a new workdir."
                )
        self.close()
        self._position = int(state["batches"])

    def close(self) -> None:
        """Stops the workers; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _dataset(self, start: int) -> grain.IterDataset:
        """Returns the batches from `start` on.

        Threads of this process read parts of batches, which are then joined. Decoding processes and
        the calling thread read whole batches.
        """
        config, parts = self._config, self._share.size // self._share.part_size
        dataset = grain.MapDataset.source(self._share)
        batch = {
            "batch_size": parts,
            "drop_remainder": config.remainder == "drop",
            "batch_fn": functools.partial(_join, fields=self._fields),
        }
        if config.workers and not config.processes:
            ahead = max(config.prefetch * parts, config.workers)
            options = grain.ReadOptions(num_threads=config.workers, prefetch_buffer_size=ahead)
            return dataset[start * parts :].to_iter_dataset(options).batch(**batch)
        ahead = max(config.prefetch, config.workers) if config.workers else 0
        options = grain.ReadOptions(num_threads=config.workers, prefetch_buffer_size=ahead)
        dataset = dataset.batch(**batch)[start:].to_iter_dataset(options)
        if config.processes:
            if not flags.FLAGS.is_parsed():  # Grain's worker processes read absl flags
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(num_workers=config.processes)
            dataset = dataset.mp_prefetch(workers)
        return dataset


def make_loader(
    source: Source,
    *,
    example: ExampleConfig,
    config: LoaderConfig,
    tokenizer: Tokenizer | None = None,
    mixed: Sequence[Source] = (),
    process_index: int = 0,
    process_count: int = 1,
    finish: Finish | None = None,
    origin: Mapping[str, str] | None = None,
) -> Loader:
    """Returns the loader of process `process_index` of `process_count`.

    Args:
        source: records by index.
        example: fields of a batch and their preprocessing.
        config: batch size, order and workers.
        tokenizer: tokenizer of the captions, for the fields tokens and token_mask.
        mixed: further sources; each contributes as many examples as `source`, or in proportion to
            `config.weights`.
        process_index: which contiguous part of every batch to load.
        process_count: number of parts.
        finish: function that is applied to every batch, for example to add fields that a network
            computes from others.
        origin: digests of the data, such as {"data": ..., "tokenizer": ...}; saved positions with
            other digests are rejected.

    Raises:
        UserError: a source is empty, smaller than a batch or lacks a field; there is no tokenizer;
            `process_count` does not divide the batch size; a mixture is finite or not shuffled.
    """
    divisible("batch_size", config.batch_size, process_count, "every process takes an equal part.")
    in_range("process_index", process_index, 0, process_count - 1)
    if config.remainder == "keep" and process_count > 1:
        raise UserError("remainder 'keep' works with one process; use 'pad' or 'drop'.")
    if mixed and not (config.shuffle and config.num_epochs is None):
        raise UserError(
            f"{1 + len(mixed)} data sets are mixed, which is random and endless; use one data "
            "set, or shuffle=True and num_epochs=None."
        )
    sources = (source, *mixed)
    cache_bytes = config.cache_mb * 2**20 // len(sources)
    fixed = [
        FixedExamples(part, config=example, tokenizer=tokenizer, cache_bytes=cache_bytes)
        for part in sources
    ]
    segmentation = None
    if example.bpe_dropout and tokenizer is not None:
        segmentation = BpeDropout(tokenizer, rate=example.bpe_dropout)
    stream = _stream(fixed, RandomPart(example, segmentation), config)
    decoding = {"decoding": "reduced"} if example.fast_decode else {}
    fields = (*example.fields, *(("valid",) if config.remainder == "pad" else ()))
    share = _Share(stream, config, part=process_index, parts=process_count)
    identity = {
        "num_examples": [len(part) for part in sources] if mixed else len(source),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "shuffle": config.shuffle,
        "group": config.group,
        **({"weights": list(config.weights)} if config.weights else {}),
    }
    return Loader(
        share,
        config=config,
        fields=fields,
        identity=identity,
        origin={**(origin or {}), **decoding},
        finish=finish,
    )


def _stream(
    fixed: Sequence[FixedExamples], random_part: RandomPart, config: LoaderConfig
) -> grain.MapDataset:
    """Returns all examples of the run in order.

    Raises:
        UserError: the number of weights is not that of the data sets.
    """
    if config.weights and len(config.weights) != len(fixed):
        raise UserError(
            f"there are {len(config.weights)} weights for {len(fixed)} data sets; give one for "
            "config.data.path and one for each of config.data.mixture, or none."
        )
    streams = [_epochs(part, config, number) for number, part in enumerate(fixed)]
    weights = list(config.weights) or None
    stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)
    if not random_part.config.random:
        return stream
    return stream.random_map(random_part, seed=_derive(config.seed, "examples"))


def _epochs(fixed: FixedExamples, config: LoaderConfig, number: int) -> grain.MapDataset:
    """Returns data set `number` of a mixture, shuffled anew in every epoch."""
    examples: Any = _Padded(fixed, config.batch_size) if config.remainder == "pad" else fixed
    seed = _derive(config.seed, f"shuffle {number}" if number else "shuffle")
    if config.shuffle and config.group > 1:
        groups = grain.MapDataset.range(len(examples) // config.group).shuffle(seed=seed)
        groups = groups.repeat(config.num_epochs)
        return grain.MapDataset.source(_Grouped(examples, groups, config.group))
    stream = grain.MapDataset.source(examples)
    stream = stream.shuffle(seed=seed) if config.shuffle else stream
    return stream.repeat(config.num_epochs)


class _Share:
    """The examples of one process: its contiguous part of every batch, as lists of a few.

    A thread reads one list at a time. With single examples the overhead per item would exceed the
    time to decode a small image; with whole batches only as many reads would run concurrently as
    batches are prefetched.
    """

    def __init__(self, stream: grain.MapDataset, config: LoaderConfig, *, part: int, parts: int):
        """Selects part `part` of `parts` of every batch of `stream`.

        Raises:
            UserError: there are fewer examples than in a batch.
        """
        total = len(stream) // config.batch_size
        if total == 0 and config.remainder == "drop":
            raise UserError(
                f"the data set has {len(stream)} examples, fewer than one batch of "
                f"{config.batch_size}; lower the batch size or set remainder='keep'."
            )
        self._stream, self._batch = stream, config.batch_size
        self.size = config.batch_size // parts
        self.part_size = math.gcd(self.size, TOGETHER)
        self._offset = part * self.size
        self._count = len(stream) if config.remainder == "keep" else total * self.size

    def batches(self) -> int:
        """Returns the number of batches."""
        return -(-self._count // self.size)

    def __len__(self) -> int:
        return -(-self._count // self.part_size)

    def __getitem__(self, index: int) -> list[Example]:
        start = index * self.part_size
        batch, row = divmod(start, self.size)
        first = batch * self._batch + self._offset + row
        count = min(self.part_size, self._count - start)
        examples: list[Any] = [self._stream[first + i] for i in range(count)]
        return examples


def _join(parts: Sequence[list[Example]], fields: tuple[str, ...]) -> HostBatch:
    """Returns the examples of several lists as one batch."""
    return collate([example for part in parts for example in part], fields=fields)


class _Grouped:
    """The examples of a data set, group by group in the order of `groups`."""

    def __init__(self, examples: Any, groups: grain.MapDataset, size: int):
        self._examples, self._groups, self._size = examples, groups, size

    def __len__(self) -> int:
        return min(len(self._groups) * self._size, sys.maxsize)

    def __getitem__(self, index: int) -> Example:
        group: Any = self._groups[index // self._size]
        return self._examples[int(group) * self._size + index % self._size]


class _Padded:
    """A source padded to whole batches with copies of its last example; "valid" is False there."""

    def __init__(self, examples: Sequence[Example] | FixedExamples, batch_size: int):
        self._examples, self._real = examples, len(examples)
        self._length = -(-self._real // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        valid = index < self._real
        return {**self._examples[min(index, self._real - 1)], "valid": valid}


def _derive(seed: int, purpose: str) -> int:
    """Derives a 32-bit seed, independent for every seed and purpose."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
