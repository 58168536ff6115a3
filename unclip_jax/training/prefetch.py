"""From an iterator of host batches to batches on the device, one ahead of the step.

Each batch travels with the position of the data right after it, so that a checkpoint taken after
its step continues with the next batch, whatever has been fetched ahead by then.
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
class Positioned(Protocol):
    """An iterator of host batches that knows where it is; Grain's DatasetIterator is one."""

    def __next__(self) -> HostBatch:
        """Return the next batch: this process's part of it."""
        ...

    def get_state(self) -> Any:
        """Return the position after the last batch; JSON-ready or bytes."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a position that `get_state` gave."""
        ...


class PrefetchedBatch(NamedTuple):
    """One batch on its way through a step.

    Attributes:
        host: this process's part, as it came.
        device: the global batch, placed on the mesh.
        position: of the data right after this batch.
        wait_seconds: seconds until the data source returned it.
    """

    host: HostBatch
    device: Batch
    position: Any
    wait_seconds: float


class DevicePrefetcher:
    """Batches for training, checked and placed."""

    def __init__(self, data: Positioned, *, spec: BatchSpec, batch_size: int, mesh: Mesh):
        """Prefetch from `data`: global batches of `batch_size` examples that fit `spec`."""
        self._data = data
        self._spec = spec
        self._mesh = mesh
        self._local = batch_size // jax.process_count()
        self._count = 0

    def next(self) -> PrefetchedBatch:
        """Fetch one batch and start its transfer.

        Raises:
            UserError: the data have ended, or the batch is not what the stage expects.
        """
        start = time.perf_counter()
        try:
            host = next(self._data)
        except StopIteration:
            raise UserError(
                f"the training data ended after {self._count} batches of this run; repeat them "
                "without end, or lower config.train.steps."
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
