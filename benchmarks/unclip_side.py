"""Our side of a comparison: the real train step, or a stage's sampling function, on random input.

    (a task as JSON on stdin, see `benchmarks.interleaved`)

The programs are those of `unclip_jax.train` and `unclip_jax.sample`, compiled for the available
devices. A task is {"config": FILE.py:SIZE, "overrides": [...], "what": "train" or "sample",
"batch": images per batch when sampling}.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks import interleaved
from unclip_jax.backbones.layers import compute_dtype
from unclip_jax.core.batch import BatchSpec
from unclip_jax.core.trees import count
from unclip_jax.core.types import HostBatch
from unclip_jax.experiment import loading
from unclip_jax.experiment.config import Experiment
from unclip_jax.parallel import place
from unclip_jax.parallel.mesh import (
    batch_sharding,
    batch_shards,
    make_mesh,
    replicated,
    sampling_mesh,
    traced_on,
)
from unclip_jax.planning import flops, program, sampling
from unclip_jax.training import loop
from unclip_jax.training.state import TrainState
from unclip_jax.training.train_program import TrainProgram

MATMUL_SIDES = (1024, 2048)
SATURATED = 0.05  # seconds of a product beyond which larger ones are not faster

Work = Callable[[], Any]


class PreparedProgram(NamedTuple):
    """One program, ready to run.

    Attributes:
        compiled: the compiled program, for its memory analysis.
        once: function that runs it to completion.
        mesh: its devices.
        model_flops: FLOPs of one call, without recomputation.
        traced_flops: FLOPs of one call, including recomputation.
        parameters: number of parameters of the network.
        examples: examples per call.
    """

    compiled: Any
    once: Work
    mesh: Mesh
    model_flops: float
    traced_flops: float
    parameters: int
    examples: int


def prepare(task: dict[str, Any]) -> tuple[dict[str, Any], Work]:
    """Compiles the program of a task; returns facts about it and a function that runs it."""
    experiment = loading.read(task["config"], overrides=task["overrides"])
    started = time.perf_counter()
    if task["what"] == "train":
        prepared = train(experiment)
    else:
        prepared = sample(experiment, batch_size=task["batch"])
    seconds = time.perf_counter() - started
    device = prepared.mesh.devices.flat[0]
    facts = {
        "examples": prepared.examples,
        "parameters": prepared.parameters,
        "model_flops": prepared.model_flops,
        "traced_flops": prepared.traced_flops,
        "compile_seconds": seconds,
        "compiled_memory": memory(prepared.compiled),
        "device": f"{prepared.mesh.size} x {device.device_kind}",
        "peak_flops": peak(prepared.mesh, dtype=dtype_of(experiment)),
        "dtype": dtype_of(experiment),
        "jax": jax.__version__,
    }
    return facts, prepared.once


class Training(NamedTuple):
    """A stage ready to be trained: its compiled step and a new state."""

    train_program: TrainProgram
    state: TrainState


def training(experiment: Experiment) -> Training:
    """Prepares the training of an experiment like `unclip_jax.train`, on the available devices."""
    mesh = make_mesh(experiment.mesh)
    train_program = loop.prepare(
        experiment.build_stage(),
        experiment.train,
        experiment.optim,
        mesh=mesh,
        rules=experiment.rules,
    )
    return Training(train_program, train_program.create(place.replicate(jax.random.key(0), mesh)))


def train(experiment: Experiment) -> PreparedProgram:
    """Prepares the train step on one random batch."""
    (train_program, state), spec = training(experiment), experiment.build_stage().batch_spec
    size, mesh = experiment.train.batch_size, train_program.mesh
    planned = program.train(experiment, mesh=mesh)
    key = place.replicate(jax.random.key(0), mesh)
    batch = jax.device_put(random_batch(spec, size), batch_sharding(mesh))
    compiled = train_program.step.lower(state, batch, key).compile()

    def once() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))

    return PreparedProgram(
        compiled,
        once,
        mesh,
        planned.model_flops,
        planned.traced.flops,
        planned.parameters,
        size,
    )


def sample(experiment: Experiment, *, batch_size: int) -> PreparedProgram:
    """Prepares the stage's sampling function with random parameters and captions."""
    stage = experiment.build_stage()
    mesh, batch_size = sampling_mesh(batch_size)
    draw, shapes = sampling.function(experiment.stage, experiment.model, batch_size=batch_size)
    params = place.unbox(jax.jit(stage.init)(jax.random.key(0)))
    inputs = {name: random_like(shape) for name, shape in shapes.items() if name != "keys"}
    inputs["keys"] = jax.random.split(jax.random.key(1), batch_size)
    params = jax.device_put(params, replicated(mesh))
    inputs = jax.device_put(inputs, batch_sharding(mesh))
    traced = jax.jit(traced_on(mesh, draw)).trace(params, inputs)
    compiled = traced.lower().compile()
    total = flops.of_jaxpr(traced.jaxpr.jaxpr).flops

    def once() -> None:
        jax.block_until_ready(compiled(params, inputs))

    return PreparedProgram(compiled, once, mesh, total, total, count(params), batch_size)


def random_batch(spec: BatchSpec, size: int) -> HostBatch:
    """Returns a random batch that satisfies `spec`; captions fill all positions."""
    generator = np.random.default_rng(0)
    batch = {}
    for name, field in spec.items():
        shape = (size, *field.shape)
        if field.dtype == "bool":
            batch[name] = np.ones(shape, bool)
        elif field.dtype == "int32":
            batch[name] = generator.integers(0, int(field.high or 0) + 1, shape, np.int32)
        else:
            batch[name] = np.clip(generator.standard_normal(shape, np.float32), -1.0, 1.0)
    return batch


def random_like(leaf: Any) -> Any:
    """Returns values of this shape: True, token 1, or normal random numbers."""
    if leaf.dtype == np.bool_:
        return np.ones(leaf.shape, bool)
    if np.issubdtype(leaf.dtype, np.integer):
        return np.ones(leaf.shape, leaf.dtype)
    values = np.random.default_rng(0).standard_normal(leaf.shape, np.float32)
    return np.clip(values, -1.0, 1.0).astype(leaf.dtype)


def dtype_of(experiment: Experiment) -> str:
    """Returns the compute dtype of an experiment's network."""
    model = experiment.model.model
    return getattr(model, "dtype", None) or model.unet.dtype


def memory(compiled: Any) -> dict[str, int]:
    """Returns XLA's memory analysis for one device, in bytes."""
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs_not_aliased": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
    }


def _finished(product: Callable[..., Any], *, x: Any, w: Any) -> None:
    jax.block_until_ready(product(x, w))


def peak(mesh: Mesh, *, dtype: str, times: int = 5) -> float:
    """Measures the peak FLOP/s of a plain matrix product on all devices of `mesh` together."""
    best = 0.0
    for side in MATMUL_SIDES:
        rows = side * batch_shards(mesh)
        x = jax.device_put(jnp.ones((rows, side), compute_dtype(dtype)), batch_sharding(mesh))
        w = jax.device_put(jnp.ones((side, side), compute_dtype(dtype)), replicated(mesh))
        product = jax.jit(jnp.matmul, out_shardings=batch_sharding(mesh))
        _finished(product, x=x, w=w)
        once = functools.partial(_finished, product, x=x, w=w)
        seconds = min(interleaved.timed(once).wall for _ in range(times))
        best = max(best, 2.0 * rows * side * side / seconds)
        if seconds > SATURATED:
            break
    return best


if __name__ == "__main__":
    interleaved.serve(prepare)
