"""How the averaged parameters do on held-out data: a number and an image."""

import itertools
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
from unclip_jax.core.types import Batch, HostBatch, Key
from unclip_jax.parallel.mesh import batch_sharding, batch_shards, replicated, traced_on
from unclip_jax.parallel.multihost import gather
from unclip_jax.parallel.place import copied, fetch_all, global_batch
from unclip_jax.training.hooks import Moment, Numbers
from unclip_jax.training.step import Trainable

HeldOut = Callable[[], Iterable[HostBatch]]
Labels = Callable[[HostBatch], Sequence[str]]


class PeriodicEval:
    """Means of the stage's metrics over the first batches of the held-out data.

    The same batches with the same keys every time, so that two values differ by the parameters
    alone. Batches smaller than the first are left out; with several processes, each must give the
    same number of batches.
    """

    def __init__(
        self,
        stage: Trainable,
        data: HeldOut,
        *,
        count: int,
        key: Key,
        mesh: Mesh,
        shardings: Any,
        report: Callable[[int, Numbers], None],
    ):
        """Evaluate `count` batches of `data()` and hand the means to `report(step, numbers)`."""
        self._spec, self._data, self._count, self._mesh = stage.batch_spec, data, count, mesh
        self._report = report
        self._key = copied(key, mesh)

        def evaluate(params: Any, batch: Any, key: Key, index: Array) -> Any:
            return stage.evaluate(params, batch, rng.fold(key, "validation", index))

        places = (shardings, batch_sharding(mesh), replicated(mesh), replicated(mesh))
        self._evaluate = jax.jit(
            traced_on(mesh, evaluate), in_shardings=places, out_shardings=replicated(mesh)
        )

    def __call__(self, moment: Moment) -> None:
        """Evaluate the averaged parameters of this moment.

        Raises:
            UserError: the held-out data hold no batch that the mesh can take.
        """
        numbers = fetch_all(self._results(moment.state.ema_params))
        if not numbers:
            raise UserError(
                "the validation data hold no batch; set config.train.eval_every=0, or mend them."
            )
        means = {f"val/{k}": float(np.mean([n[k] for n in numbers])) for k in numbers[0]}
        self._report(moment.step, means)

    def _results(self, params: Any) -> Iterator[Any]:
        """Metrics of one batch after the other, on the devices."""
        size = None
        for index, host in enumerate(itertools.islice(self._data(), self._count)):
            if index == 0:
                size = _first(self._spec, host, self._mesh)
            host = {name: host[name] for name in self._spec}
            if len(next(iter(host.values()))) == size:
                where = copied(np.int32(index), self._mesh)
                yield self._evaluate(params, global_batch(host, self._mesh), self._key, where)


class SamplePreview:
    """A labelled PNG grid of what the averaged parameters draw, `samples/step_00000500.png`."""

    def __init__(
        self,
        stage: Trainable,
        data: HeldOut,
        *,
        count: int,
        key: Key,
        mesh: Mesh,
        shardings: Any,
        folder: pathlib.Path,
        labels: Labels | None = None,
    ):
        """Draw the first `count` held-out examples.

        `labels` gives the words under each, from a batch with all fields that the data have.
        """
        preview = stage.preview
        if preview is None:
            raise TypeError(f"stage {stage.name} has no preview")
        self._name, self._spec, self._data, self._mesh = stage.name, stage.batch_spec, data, mesh
        self._count, self._folder, self._labels = count, folder, labels
        self._key = copied(key, mesh)
        self._batch: HostBatch | None = None

        def draw(params: Any, batch: Any, rows: Batch, key: Key) -> tuple[Array, Array]:
            images = to_uint8(preview(params, batch, rng.fold(key, "samples")))
            return images, rows["row"]

        split = batch_sharding(mesh)
        places = (shardings, split, split, replicated(mesh))
        self._draw = jax.jit(
            traced_on(mesh, draw), in_shardings=places, out_shardings=replicated(mesh)
        )

    def __call__(self, moment: Moment) -> None:
        """Draw with the averaged parameters of this moment; process 0 writes.

        Raises:
            UserError: the held-out data have too few examples, or the folder cannot be written.
        """
        if self._batch is None:
            self._batch = self._take()
        drawn = {name: self._batch[name] for name in self._spec}
        device = global_batch(drawn, self._mesh)
        rows = global_batch({"row": self._rows()}, self._mesh)
        given = moment.state.ema_params, device, rows, self._key
        images, order = jax.device_get(self._draw(*given))
        words = self._words()
        if jax.process_index() != 0:
            return
        images = images[np.argsort(order)][: self._count]  # a mesh may order processes anew
        words = words[: self._count]
        path = self._folder / f"step_{moment.step:08d}.png"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            labelled_grid(images, labels=words).save(path)
        except OSError as error:
            raise UserError(f"cannot write the sample grid {path}: {error.strerror}.") from error

    def _take(self) -> HostBatch:
        """This process's share of the fewest examples that hold `count` and fit the mesh."""
        shards = batch_shards(self._mesh)
        needed = -(-self._count // shards) * shards // jax.process_count()
        parts: list[HostBatch] = []
        have = 0
        for host in self._data():
            parts.append(host)
            have += len(next(iter(host.values())))
            if have >= needed:
                break
        if have < needed:
            raise UserError(
                f"config.train.num_samples is {self._count}, but the validation data have only "
                f"{have} examples here; lower it."
            )
        return {name: np.concatenate([p[name] for p in parts])[:needed] for name in parts[0]}

    def _rows(self) -> Int32[np.ndarray, " b"]:
        """Numbers of this process's examples among those of all."""
        own = len(next(iter(self._batch.values()))) if self._batch else 0
        return np.arange(own, dtype=np.int32) + np.int32(own * jax.process_index())

    def _words(self) -> list[str]:
        """Under the examples of all processes."""
        if self._labels is None or self._batch is None:
            return [f"{self._name} {index}" for index in range(self._count)]
        return [word for words in gather(list(self._labels(self._batch))) for word in words]


def _first(spec: Any, host: HostBatch, mesh: Mesh) -> int:
    """Check the first held-out batch and return its size."""
    batches.check(spec, host)
    size = len(next(iter(host.values())))
    if size * jax.process_count() % batch_shards(mesh):
        raise UserError(
            f"a validation batch has {size} examples, which the mesh's {batch_shards(mesh)} batch "
            "shards do not divide; change the batch size or the mesh."
        )
    return size
