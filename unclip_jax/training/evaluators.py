"""Evaluation of the averaged parameters on held-out data: metrics and sample grids."""

import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from unclip_jax.core import batch as batches
from unclip_jax.core import rng
from unclip_jax.core.checks import UserError
from unclip_jax.core.picture import labelled_grid, to_uint8
from unclip_jax.core.stage import Stage
from unclip_jax.core.types import Batch, HostBatch, Key, Params
from unclip_jax.parallel.mesh import batch_sharding, batch_shards, replicated, traced_on
from unclip_jax.parallel.multihost import first_rows, gather
from unclip_jax.parallel.place import fetch_all, global_batch, replicate
from unclip_jax.training.hooks import LoopState, Numbers

log = logging.getLogger(__name__)

HeldOut = Callable[[], Iterable[HostBatch]]
Labels = Callable[[HostBatch], Sequence[str]]


class PeriodicEval:
    """Averages the stage's metrics over the first batches of the held-out data.

    Batches and keys are the same every time, so that differences are due to the parameters alone.
    Batches smaller than the first are skipped; all processes must have the same number of batches.
    """

    def __init__(
        self,
        stage: Stage,
        data: HeldOut,
        *,
        count: int,
        key: Key,
        mesh: Mesh,
        shardings: Any,
        report: Callable[[int, Numbers], None],
        teacher: tuple[Params, ...] = (),
    ):
        """Evaluates `count` batches of `data()` and passes the means to `report(step, numbers)`.

        `teacher` contains the parameters of the stage's teacher on the devices, if it has one.
        """
        self._spec, self._data, self._count, self._mesh = stage.batch_spec, data, count, mesh
        self._report = report
        self._key, self._teacher = replicate(key, mesh), teacher

        def evaluate(params: Any, batch: Any, key: Key, index: Array, *teacher: Params) -> Any:
            return stage.evaluate(params, batch, rng.fold(key, "validation", index), *teacher)

        places = (shardings, batch_sharding(mesh), replicated(mesh), replicated(mesh))
        places += jax.tree.map(lambda x: x.sharding, teacher)
        self._evaluate = jax.jit(
            traced_on(mesh, evaluate), in_shardings=places, out_shardings=replicated(mesh)
        )

    def __call__(self, moment: LoopState) -> None:
        """Evaluates the averaged parameters.

        Raises:
            UserError: the held-out data have no batch that fits the mesh.
        """
        numbers = fetch_all(self._results(moment.state.ema_params))
        if not numbers:
            raise UserError(
                "the validation data hold no batch; set config.train.eval_every=0, or give a split "
                "with examples."
            )
        means = {f"val/{k}": float(np.mean([n[k] for n in numbers])) for k in numbers[0]}
        self._report(moment.step, means)

    def _results(self, params: Any) -> Iterator[Any]:
        """Yields the metrics of each batch, on the devices."""
        size = None
        for index, host in enumerate(itertools.islice(self._data(), self._count)):
            if index == 0:
                size = _first_size(self._spec, host, self._mesh)
            host = {name: host[name] for name in self._spec}
            if len(next(iter(host.values()))) == size:
                where = replicate(np.int32(index), self._mesh)
                batch = global_batch(host, self._mesh)
                yield self._evaluate(params, batch, self._key, where, *self._teacher)


class SamplePreview:
    """Writes labelled grids of samples of the averaged parameters, `samples/step_00000500.png`."""

    def __init__(
        self,
        stage: Stage,
        data: HeldOut,
        *,
        count: int,
        key: Key,
        mesh: Mesh,
        shardings: Any,
        folder: pathlib.Path,
        labels: Labels | None = None,
    ):
        """Previews the first `count` held-out examples.

        `labels` returns the label of each example, from a batch with all fields of the data.
        """
        preview = stage.preview
        if preview is None:
            raise TypeError(f"stage {stage.name} has no preview")
        self._name, self._spec, self._data, self._mesh = stage.name, stage.batch_spec, data, mesh
        self._count, self._folder, self._labels = count, folder, labels
        self._key = replicate(key, mesh)
        self._examples: tuple[HostBatch, list[str]] | None = None

        def sample(params: Any, batch: Any, rows: Batch, key: Key) -> tuple[Array, Array]:
            images = to_uint8(preview(params, batch, rng.fold(key, "samples")))
            return images, rows["row"]

        split = batch_sharding(mesh)
        places = (shardings, split, split, replicated(mesh))
        self._sample = jax.jit(
            traced_on(mesh, sample), in_shardings=places, out_shardings=replicated(mesh)
        )

    def __call__(self, moment: LoopState) -> None:
        """Samples with the averaged parameters; process 0 writes the grid.

        Raises:
            UserError: the held-out data have no example, or the folder cannot be written.
        """
        self._examples = self._examples or self._first_examples()
        own, labels = self._examples
        batch = global_batch(own, self._mesh)
        rows = global_batch({"row": self._rows(_size(own))}, self._mesh)
        params = moment.state.ema_params
        images, order = jax.device_get(self._sample(params, batch, rows, self._key))
        if jax.process_index() != 0:
            return
        images = images[np.argsort(order)][: self._count]  # a mesh may order processes differently
        labels = labels[: self._count]
        path = self._folder / f"step_{moment.step:08d}.png"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            labelled_grid(images, labels=labels).save(path)
        except OSError as error:
            raise UserError(
                f"cannot write the sample grid {path}: {error.strerror}; free space or repair the "
                "folder, then run the same command again."
            ) from error

    def _first_examples(self) -> tuple[HostBatch, list[str]]:
        """Returns this process's rows of a batch that begins with the first examples, and labels.

        The batch has as many rows as the mesh needs: `count` rounded up to a multiple of its batch
        shards, or down if there are too few examples. Its other rows are not previewed.

        Raises:
            UserError: there are too few examples for one row per shard.
        """
        shards = batch_shards(self._mesh)
        unit = shards // jax.process_count()
        needed = -(-self._count // shards) * unit
        own: list[HostBatch] = []
        first: list[HostBatch] = []
        labels: list[str] = []
        available, left = 0, self._count
        for host in self._data():
            fields = {name: host[name] for name in self._spec}
            own.append(fields)
            available += _size(fields)
            if left:
                first.append(first_rows(fields, left))
                labels += self._label(host, left)
                left -= _size(first[-1])
            if available >= needed and not left:
                break
        usable = min(needed, available // unit * unit)
        if not usable:
            raise UserError(
                f"the validation data have {available} examples here, but a batch is split over "
                f"{unit} devices; give more, or set config.train.sample_every=0."
            )
        if usable < needed:
            self._count = min(self._count, usable * jax.process_count())
            log.info("%s: %d samples per grid, as there are no more", self._name, self._count)
        rows = self._rows(usable)
        previewed = rows < self._count
        batch = {name: np.concatenate([part[name] for part in own])[:usable] for name in self._spec}
        for name, x in batch.items():
            x[previewed] = np.concatenate([part[name] for part in first])[rows[previewed]]
        return batch, labels or [f"{self._name} {index}" for index in range(self._count)]

    def _label(self, host: HostBatch, count: int) -> list[str]:
        """Returns the labels of the first `count` rows of a batch of all processes."""
        if self._labels is None:
            return []
        parts = gather(list(self._labels({name: x[:count] for name, x in host.items()})))
        return [label for part in parts for label in part][:count]

    def _rows(self, own: int) -> Int32[np.ndarray, " b"]:
        """Returns the indices of this process's `own` rows among those of all."""
        return np.arange(own, dtype=np.int32) + np.int32(own * jax.process_index())


def _size(batch: HostBatch) -> int:
    return len(next(iter(batch.values())))


def _first_size(spec: Any, host: HostBatch, mesh: Mesh) -> int:
    """Checks the first held-out batch and returns its size."""
    batches.check(spec, host)
    size = _size(host)
    if size * jax.process_count() % batch_shards(mesh):
        raise UserError(
            f"a validation batch has {size} examples, which the mesh's {batch_shards(mesh)} batch "
            "shards do not divide; change the batch size or the mesh."
        )
    return size
