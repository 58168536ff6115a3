"""Runs functions of one batch on any number of images: compiled once, split over all devices."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from unclip_jax.core.picture import to_uint8
from unclip_jax.core.types import Image
from unclip_jax.inference.compiled_function import CompiledFunction
from unclip_jax.inference.progress import Progress, ProgressCallback
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import sampling_mesh

T = TypeVar("T")


class BatchRunner:
    """Compiles functions of a model and runs them on batches of one shape.

    Attributes:
        mesh: the devices, of all processes.
        batch: images per batch.
        progress: called with the state of the work; None = no callback.
    """

    def __init__(self, config: Any, *, batch: int):
        """Chooses the devices.

        Args:
            config: first argument of every function.
            batch: images per batch; rounded up to a multiple of the devices of all processes.
        """
        self.config = config
        self.mesh, self.batch = sampling_mesh(batch)
        self.progress: ProgressCallback | None = None
        self._state = Progress("", 0, 0)
        self._compiled: dict[tuple[Callable[..., Any], int], Callable[..., Any]] = {}

    def place(self, params: T) -> T:
        """Copies parameters to every device."""
        return place.replicate(params, self.mesh)

    def compiled(
        self, function: Callable[..., T], *static: str, config: Any = None
    ) -> Callable[..., T]:
        """Returns `function(config, params, ...)` compiled once for these models.

        Args:
            function: a pure function.
            static: names of arguments that are not arrays.
            config: first argument; None = the config of this runner.
        """
        config = self.config if config is None else config
        # the partial keeps the config alive, so that its id is not reused
        key = (function, id(config))
        if key not in self._compiled:
            run = functools.partial(function, config)
            self._compiled[key] = CompiledFunction(
                run, static=static, mesh=self.mesh, compiling=self._compiling
            )
        return self._compiled[key]

    def run(self, function: Callable[[Any], T], inputs: Any, name: str) -> T:
        """Runs a function of one batch on all rows of `inputs` and joins its results.

        All batches have one shape, which is split over the devices. A last batch that is smaller
        is padded to it, and few images to a power of two, so that few programs are compiled.

        Args:
            function: maps some rows of `inputs` to arrays with as many rows.
            inputs: a tree of arrays with one row per image.
            name: name of the stage, for progress.
        """
        count, devices = jax.tree.leaves(inputs)[0].shape[0], self.mesh.size
        size = min(self.batch, devices * padded(-(-count // devices)))
        results = []
        quiet = self.progress is not None or jax.process_index() > 0
        with tqdm(total=count, unit="image", desc=name, leave=False, disable=quiet) as bar:
            for start in range(0, count, size):
                self.report(Progress(name, start, count))
                rows = jnp.minimum(jnp.arange(start, start + size), count - 1)
                batch = jax.tree.map(lambda x, rows=rows: x[rows], inputs)
                result = jax.block_until_ready(function(place.spread(batch, self.mesh)))
                results.append(jax.tree.map(_local, result))
                bar.update(min(size, count - start))
        self.report(Progress(name, count, count))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:count], *results)

    def report(self, state: Progress) -> None:
        """Calls the progress callback, if there is one."""
        if self.progress is not None:
            self._state = state
            self.progress(state)

    def _compiling(self, state: bool) -> None:
        if self.progress is not None:
            self.report(self._state._replace(compiling=state))

    def preview(self, x_0: Image, step: int, steps: int) -> None:
        """Reports the predicted images of the current batch."""
        if self.progress is not None:
            images = to_uint8(np.asarray(x_0))[: self._state.total - self._state.done]
            self.report(self._state._replace(step=step, steps=steps, images=images))


def padded(count: int) -> int:
    """Returns the number of rows to which a batch of `count` is padded: a power of two."""
    return 1 << (count - 1).bit_length()


def _local(array: jax.Array) -> jax.Array:
    """Returns an array that every process holds in full as an array of this process alone."""
    return array if jax.process_count() == 1 else jnp.asarray(np.asarray(array))
