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
from unclip_jax.parallel.multihost import gather
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
        self._batch: HostBatch | None = None

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
        if self._batch is None:
            self._batch = self._first_examples()
        batch = global_batch({name: self._batch[name] for name in self._spec}, self._mesh)
        rows = global_batch({"row": self._rows()}, self._mesh)
        params = moment.state.ema_params
        images, order = jax.device_get(self._sample(params, batch, rows, self._key))
        labels = self._all_labels()
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

    def _first_examples(self) -> HostBatch:
        """Returns this process's share of `count` examples, or of all if there are fewer.

        The number is rounded to a multiple of the mesh's batch shards: up, or down if there are too
        few examples.
        """
        shards = batch_shards(self._mesh)
        unit = shards // jax.process_count()
        needed = -(-self._count // shards) * unit
        parts: list[HostBatch] = []
        available = 0
        for host in self._data():
            parts.append(host)
            available += len(next(iter(host.values())))
            if available >= needed:
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
        needed = usable
        return {name: np.concatenate([p[name] for p in parts])[:needed] for name in parts[0]}

    def _rows(self) -> Int32[np.ndarray, " b"]:
        """Returns the indices of this process's examples among those of all."""
        own = len(next(iter(self._batch.values()))) if self._batch else 0
        return np.arange(own, dtype=np.int32) + np.int32(own * jax.process_index())

    def _all_labels(self) -> list[str]:
        """Returns the labels of the examples of all processes."""
        if self._labels is None or self._batch is None:
            return [f"{self._name} {index}" for index in range(self._count)]
        return [label for part in gather(list(self._labels(self._batch))) for label in part]


def _first_size(spec: Any, host: HostBatch, mesh: Mesh) -> int:
    """Checks the first held-out batch and returns its size."""
    batches.check(spec, host)
    size = len(next(iter(host.values())))
    if size * jax.process_count() % batch_shards(mesh):
        raise UserError(
            f"a validation batch has {size} examples, which the mesh's {batch_shards(mesh)} batch "
            "shards do not divide; change the batch size or the mesh."
        )
    return size
