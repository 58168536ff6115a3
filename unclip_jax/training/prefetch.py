"""Prefetching: transfers host batches to the devices as global batches, one ahead of the step.

Each batch carries the data position right after it, so that a checkpoint written after its step
continues with the next batch, regardless of what has been fetched ahead.
"""

import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from unclip_jax.core import batch as batches
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.checks import UserError
from unclip_jax.core.types import Batch, HostBatch
from unclip_jax.parallel.place import global_batch


@runtime_checkable
class CheckpointableIterator(Protocol):
    """An iterator of host batches with a position, such as Grain's DatasetIterator."""

    def __next__(self) -> HostBatch:
        """Returns this process's part of the next batch."""
        ...

    def get_state(self) -> Any:
        """Returns the position after the last batch; JSON-ready or bytes."""
        ...

    def set_state(self, state: Any) -> None:
        """Continues from a position that `get_state` returned."""
        ...


class PrefetchedBatch(NamedTuple):
    """A batch on the devices.

    Attributes:
        host: this process's part, on the host.
        device: the global batch, placed on the mesh.
        position: data position right after this batch.
        wait_seconds: seconds for which the data source was waited for.
    """

    host: HostBatch
    device: Batch
    position: Any
    wait_seconds: float


class DevicePrefetcher:
    """Fetches batches for training, checks them and starts their transfer."""

    def __init__(
        self, data: CheckpointableIterator, *, spec: BatchSpec, batch_size: int, mesh: Mesh
    ):
        """Prefetches global batches of `batch_size` examples that match `spec`."""
        self._data = data
        self._spec = spec
        self._mesh = mesh
        self._local = batch_size // jax.process_count()
        self._count = 0

    def next(self) -> PrefetchedBatch:
        """Fetches one batch and starts its transfer.

        Raises:
            UserError: the data have ended, or the batch does not match the spec.
        """
        start = time.perf_counter()
        try:
            host = next(self._data)
        except StopIteration:
            raise UserError(
                f"the training data ended after {self._count} batches of this run; repeat them "
                "endlessly, or lower config.train.steps."
            ) from None
        wait_seconds = time.perf_counter() - start
        if self._count == 0:
            batches.check(self._spec, host)
        host = {name: host[name] for name in self._spec}
        sizes = {name: len(value) for name, value in host.items()}
        if set(sizes.values()) != {self._local}:
            raise UserError(
                f"a training batch has {sizes} examples; expected {self._local} in each process. "
                "Let the data source drop incomplete batches."
            )
        self._count += 1
        return PrefetchedBatch(
            host, global_batch(host, self._mesh), self._data.get_state(), wait_seconds
        )
