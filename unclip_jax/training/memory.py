"""The memory estimate of a training step, from shapes alone, before anything is allocated.

During a step a device stores, according to `jax.eval_shape`:

    state       parameters + average + optimiser, each as sharded
    gradients   as large as the parameters, float32, sharded like them; for SAM per replica also
                whole parameters and gradients of each replica on the device
    activations residuals of the backward pass for one microbatch, counted by tracing the loss

Activations are an estimate: XLA may store less (it fuses and recomputes) or need additional scratch
space. The estimate was 0.8 to 1.0 times XLA's own figure on the CPU for transformers and the
decoder, and 1.4 times for a purely convolutional network; a run is rejected only if 0.7 of it would
not fit either. Simulated devices of one CPU share its memory, so there the sum over devices counts.
"""

import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import psutil
from jax.sharding import Mesh

from unclip_jax.core import batch as batches
from unclip_jax.core.checks import UserError
from unclip_jax.core.stage import Stage
from unclip_jax.core.trees import count, num_bytes
from unclip_jax.parallel import mesh as meshes
from unclip_jax.parallel.place import bytes_per_device, size_text
from unclip_jax.training.state import TrainState

SURE = 0.7  # share of the estimated activations that XLA certainly needs


class Needs(NamedTuple):
    """Bytes needed in one memory (a device's, or a CPU's for all its simulated devices).

    Attributes:
        state: parameters, average, optimiser, and the parameters of a teacher.
        gradients: gradients of the parameters.
        activations: estimated activations of one microbatch.
    """

    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all three."""
        return self.state + self.gradients + self.activations

    @property
    def least(self) -> int:
        """Smallest amount that XLA can need."""
        return self.state + self.gradients + math.ceil(SURE * self.activations)


def check(
    stage: Stage,
    abstract: TrainState,
    *,
    mesh: Mesh,
    batch_size: int,
    accumulate: int = 1,
    copies: int = 0,
    enforce: bool = True,
    teacher: tuple[Any, ...] = (),
) -> str:
    """Checks that a run fits the memory of its devices.

    Args:
        stage: the stage whose loss is traced.
        abstract: the state as ShapeDtypeStructs with shardings.
        mesh: the devices.
        batch_size: examples per step, over all devices; 0 = ignore activations.
        accumulate: microbatches per step.
        copies: additional parameter sets on every device (`sam.copies`).
        enforce: False = report only.
        teacher: () or the parameters of the stage's teacher, as ShapeDtypeStructs with shardings.

    Returns:
        A line for the log: parameters, devices, memory needed and available.

    Raises:
        UserError: the run cannot fit.
    """
    free = available(mesh)
    state, gradients = _resident(abstract, mesh, copies)
    needs = Needs(state + bytes_per_device(teacher) * _sharers(mesh), gradients, 0)
    if batch_size and (needs.least <= free or not enforce):  # otherwise tracing is unnecessary
        residuals = activations(
            stage,
            abstract.params,
            batch_size=batch_size // accumulate,
            mesh=mesh,
            teacher=teacher,
        )
        needs = needs._replace(activations=residuals)
    line = _line(stage, abstract, mesh, needs, free)
    if needs.least > free and enforce:
        raise UserError(f"{line}. It cannot fit: {_advice(needs, free, mesh, copies)}")
    return line


def available(mesh: Mesh) -> int:
    """Returns the free bytes of one device of `mesh`, or of the CPU for all its devices."""
    local = mesh.local_devices
    if local[0].platform == "cpu":
        return min(psutil.virtual_memory().available, _control_group_limit())
    stats = [device.memory_stats() or {} for device in local]
    free = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    return min(free, default=2**63 - 1)


def activations(
    stage: Stage, params: Any, *, batch_size: int, mesh: Mesh, teacher: tuple[Any, ...] = ()
) -> int:
    """Counts the bytes of the residuals of one microbatch in one memory.

    Residuals are what `jax.vjp` of the loss stores besides the parameters, so remat policies and
    compute dtypes are accounted for.
    """
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    batch = batches.abstract(stage.batch_spec, batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def backward(params: Any, batch: Any, key: Any, *teacher: Any) -> Any:
        return jax.vjp(lambda p: stage.loss(p, batch, key, *teacher), params, has_aux=True)[1]

    residuals = jax.eval_shape(backward, plain, batch, key, *teacher)
    arrays = [
        x for x in jax.tree.leaves(residuals) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    ]
    whole = max(0, num_bytes(arrays) - num_bytes(plain))
    return math.ceil(whole / meshes.batch_shards(mesh)) * _sharers(mesh)


def count_text(number: int) -> str:
    """Formats a count: '1.325 billion', '3.4 million', '136'."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.4g} {word}"
    return f"{number:,}"


def _resident(abstract: TrainState, mesh: Mesh, copies: int = 0) -> tuple[int, int]:
    """Returns the bytes of state and gradients in one memory."""
    sharers = _sharers(mesh)
    gradients = bytes_per_device(abstract.params) + 2 * copies * num_bytes(abstract.params)
    return bytes_per_device(abstract) * sharers, gradients * sharers


def _sharers(mesh: Mesh) -> int:
    """Returns the number of devices that share one memory."""
    local = mesh.local_devices
    return len(local) if local[0].platform == "cpu" else 1


def _control_group_limit() -> int:
    """Returns the memory limit of the container, if one is set."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = pathlib.Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            return int(text)
    return 2**63 - 1


def _line(stage: Stage, abstract: TrainState, mesh: Mesh, needs: Needs, free: int) -> str:
    where = "this machine" if _sharers(mesh) == len(mesh.local_devices) else "each device"
    parts = [f"state {size_text(needs.state)}", f"gradients {size_text(needs.gradients)}"]
    if needs.activations:
        parts.append(f"activations about {size_text(needs.activations)}")
    return (
        f"{stage.name}: {count_text(count(abstract.params))} parameters on "
        f"{meshes.describe(mesh)}; needs {size_text(needs.total)} ({', '.join(parts)}) and {where} "
        f"has {size_text(free)} free"
    )


def _advice(needs: Needs, free: int, mesh: Mesh, copies: int) -> str:
    if needs.state + needs.gradients <= free:
        return (
            "lower config.train.batch_size or raise config.train.accumulate, set the model's "
            "remat='block', or config.train.check_memory=False to try regardless."
        )
    times = math.ceil((needs.state + needs.gradients) / free) * mesh.shape["fsdp"]
    text = (
        "choose a smaller size (--config=FILE.py:SIZE), or spread the state over more devices "
        f"(config.mesh.fsdp={times} or more, config.rules='fsdp')"
    )
    if copies:
        text += ", or config.optim.sam_batch=0, which needs one copy of the parameters"
    if copies > 1:
        text += ", or config.optim.sam_cached=True, which needs two"
    if needs.state > 3.5 * needs.gradients:
        text += ", or config.optim.name='muon', which stores one moment instead of two"
    return text + "."
