"""The device mesh and its three axes.

Axes, outermost first: "data" (copies of the parameters), "fsdp" (parameters and optimiser split,
gathered when used), "tensor" (matrices split, activations exchanged). A batch is split over the
first two. TPU slices connected by the data centre network lie along "data", whose traffic is the
least: gradients once per step. Every array placement in this project is stated on such a mesh with
Auto axes: XLA chooses the communication.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from unclip_jax.core.checks import UserError
from unclip_jax.parallel.axes import EXAMPLES

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = EXAMPLES

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 = all remaining.

    Attributes:
        data: copies of the parameters; each sees its own part of the batch.
        fsdp: devices that share one copy of the parameters; each sees its own part of the batch.
        tensor: devices that share one example's computation.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size == 0 or size < -1:
                raise UserError(f"config.mesh.{name} is {size}; give a count, or -1 for the rest.")
        if sum(size == -1 for size in sizes.values()) > 1:
            raise UserError(f"config.mesh has more than one -1 ({sizes}); fix all axes but one.")


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Creates the mesh of `config` over `devices` (default: every device of every process).

    Raises:
        UserError: the axis sizes do not multiply to the number of devices, or the slices do not
            divide the data axis.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _resolve(config, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        grid = across_slices(shape, devices=devices, slices=slices)
        return Mesh(grid, AXES, axis_types=types)
    return Mesh(within_slice(shape, devices=devices), AXES, axis_types=types)


def within_slice(
    shape: tuple[int, ...], *, devices: Sequence[Any]
) -> Shaped[np.ndarray, "data fsdp tensor"]:
    """Arranges the devices of one slice as a grid of `shape`, neighbours close to each other."""
    try:
        return jax.make_mesh(shape, AXES, devices=devices).devices
    except NotImplementedError:
        # no axis of the mesh is a product of whole sides of the slice, as 16 is not of 8 x 8
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def across_slices(
    shape: tuple[int, ...], *, devices: Sequence[Any], slices: int
) -> Shaped[np.ndarray, "data fsdp tensor"]:
    """Arranges devices of several slices as a grid of `shape`, its data axis across slices.

    Raises:
        UserError: the slices do not divide the data axis.
    """
    data, *others = shape
    if data % slices:
        raise UserError(
            f"config.mesh.data is {data}, but the devices form {slices} slices; make it a "
            f"multiple of {slices}."
        )
    inner, outer = (data // slices, *others), (slices, *(1 for _ in others))
    build = functools.partial(mesh_utils.create_hybrid_device_mesh, inner, outer, devices=devices)
    try:
        return build()
    except NotImplementedError:  # as `within_slice`
        return build(allow_split_physical_axes=True)


def sampling_mesh(batch_size: int, *, local: bool = False) -> tuple[Mesh, int]:
    """Creates a mesh to sample or embed batches on, and the batch size that it divides.

    With several processes: all devices, in the order of the processes, and the batch size rounded
    up. With one, or `local` for the devices of this process alone: as many as divide the batch; one
    on the CPU, whose devices are simulated.
    """
    devices = jax.local_devices() if local else jax.devices()
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    count = len(devices)
    if jax.process_count() > 1 and not local:
        batch_size = -(-batch_size // count) * count
    elif devices[0].platform == "cpu":
        count = 1
    else:
        count = max(n for n in range(1, count + 1) if batch_size % n == 0)
    grid = np.asarray(devices[:count]).reshape(count, 1, 1)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES)), batch_size


def traced_on(mesh: Mesh, function: Callable[P, T]) -> Callable[P, T]:
    """Wraps a function for `jax.jit` so that networks in it see the mesh (`axes.by_example`)."""

    @functools.wraps(function)
    def on_mesh(*args: P.args, **options: P.kwargs) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **options)

    return on_mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: axis 0 over every mesh axis of examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, *, batch_size: int, accumulate: int = 1) -> None:
    """Checks that a global batch splits evenly over microbatches, devices and processes.

    Raises:
        UserError: it does not.
    """
    shards = batch_shards(mesh)
    if shards % jax.process_count():
        raise UserError(
            f"the mesh splits a batch into {shards} parts, but there are {jax.process_count()} "
            "processes, each with examples of its own; lower config.mesh.tensor."
        )
    unit = math.lcm(shards * accumulate, jax.process_count())
    if batch_size <= 0 or batch_size % unit:
        nearest = max(unit, round(batch_size / unit) * unit)
        raise UserError(
            f"config.train.batch_size is {batch_size}; it must be a multiple of {unit} "
            f"({shards} batch shards of the mesh x {accumulate} microbatches). Try {nearest}."
        )


def describe(mesh: Mesh) -> str:
    """Formats a mesh for a log: '8 x cpu (data 8, fsdp 1, tensor 1)'."""
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({axes})"


def _resolve(config: MeshConfig, count: int) -> tuple[int, ...]:
    """Returns axis sizes with -1 replaced."""
    sizes = [getattr(config, name) for name in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    shape = tuple(count // fixed if size == -1 else size for size in sizes)
    if math.prod(shape) != count:
        stated = " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f"config.mesh is {stated}, but there are {count} devices; the sizes must multiply to "
            f"{count} (-1 = the rest)."
        )
    return shape
