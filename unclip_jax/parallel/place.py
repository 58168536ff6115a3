"""Placement: boxed parameters to sharded arrays, host arrays to global ones.

A network's init returns parameters in boxes that carry logical axis names
(`flax.linen.LogicallyPartitioned`). Optimiser and averages built from boxed parameters are boxed
alike, so one function places a whole training state. Boxes come off before anything is computed.
"""

import collections
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import flatten_paths
from unclip_jax.core.types import Batch
from unclip_jax.parallel import rules as rule_tables
from unclip_jax.parallel.mesh import batch_sharding
from unclip_jax.parallel.mesh import replicated as whole_on

NOTICEABLE = 0.02  # share of replicated bytes above which the report names the worst
# XLA's CPU client starts at most 32 programs per device; the next one blocks a thread that these
# may need for a collective, and the process is aborted.
IN_FLIGHT = 16


class Replication(NamedTuple):
    """The share of a sharded state that every device holds in full.

    Attributes:
        total_bytes: of all arrays, counted once.
        whole_bytes: of arrays that no mesh axis splits.
        worst: the five largest of these, (path, bytes).
    """

    total_bytes: int
    whole_bytes: int
    worst: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """whole_bytes / total_bytes."""
        return self.whole_bytes / max(self.total_bytes, 1)

    def line(self) -> str:
        """Formats a line for a log, with the largest arrays where the share is noticeable."""
        text = f"{self.share:.1%} of {size_text(self.total_bytes)} is replicated on every device"
        if self.share <= NOTICEABLE:
            return text
        return f"{text}: " + ", ".join(f"{path} ({size_text(size)})" for path, size in self.worst)


def fetch_all(results: Iterable[Any]) -> list[Any]:
    """Fetches the results of many programs to the host, with few of them in flight at a time.

    Args:
        results: an iterator that dispatches a program for every result taken from it.
    """
    in_flight: collections.deque[Any] = collections.deque()
    values = []
    for result in results:
        in_flight.append(result)
        if len(in_flight) == IN_FLIGHT:
            values.append(jax.device_get(in_flight.popleft()))
    return values + jax.device_get(list(in_flight))


def size_text(count: int | float) -> str:
    """Formats a number of bytes: '1.3 GiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def unbox(tree: Any) -> Any:
    """Removes the boxes of `tree`; a tree without boxes is returned as it is."""
    return jax.tree.map(lambda x: x.value if _is_box(x) else x, tree, is_leaf=_is_box)


def axis_names(boxed: Any) -> dict[str, tuple[str | None, ...]]:
    """Returns logical axis names by slash-separated path, None on every axis of unboxed leaves."""
    return {path: _names(leaf) for path, leaf in _boxes(boxed)}


def shardings(boxed: Any, mesh: Mesh, *, rules: str) -> Any:
    """Computes a NamedSharding per leaf of `boxed`, in the structure of `unbox(boxed)`.

    Args:
        boxed: arrays or ShapeDtypeStructs, boxed with their logical axis names; unboxed leaves
            (counters) go to every device.
        mesh: the devices.
        rules: "dp", "fsdp" or "fsdp_tp".

    Raises:
        UserError: unknown rules, names that do not match, or a mesh axis over which these rules
            split nothing.
    """
    table = rule_tables.table(rules)
    structure = jax.tree.structure(unbox(boxed))
    placed = []
    for path, leaf in _boxes(boxed):
        shape = unbox(leaf).shape
        spec = rule_tables.spec(_names(leaf), shape, table=table, mesh=mesh, path=path)
        placed.append(NamedSharding(mesh, spec))
    _check_used(placed, mesh, rules)
    return jax.tree.unflatten(structure, placed)


def abstract(boxed: Any, placed: Any) -> Any:
    """Returns unboxed ShapeDtypeStructs with shardings, the target of a restore."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), unbox(boxed), placed
    )


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
    """Creates a global batch from this process's part, axis 0 split over the mesh."""
    where, parts = batch_sharding(mesh), jax.process_count()

    def placed(part: np.ndarray) -> jax.Array:
        whole = (len(part) * parts, *part.shape[1:])
        return jax.make_array_from_process_local_data(where, part, whole)

    return {name: placed(part) for name, part in batch.items()}


def spread(tree: Any, mesh: Mesh) -> Any:
    """Splits host arrays that every process holds in full over the mesh along axis 0."""
    return jax.tree.map(lambda x: _put(x, batch_sharding(mesh)), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays that every process holds in full on all devices of the mesh."""
    return jax.tree.map(lambda x: _put(x, whole_on(mesh)), tree)


def put(tree: Any, placed: Any) -> Any:
    """Places arrays that every process holds in full with the shardings of `placed`.

    Unlike `jax.device_put`, without comparing the values across processes, which for parameters
    costs as much as sending them all.
    """
    return jax.tree.map(_put, tree, placed)


def describe(placed: Any) -> dict[str, str]:
    """Formats shardings by path: {"up/kernel": "fsdp, -"}; "" = replicated."""
    return {path: _spec_text(leaf.spec) for path, leaf in flatten_paths(placed).items()}


def measure_replication(tree: Any) -> Replication:
    """Measures the replicated bytes of `tree` (arrays or structs with shardings)."""
    sizes = {path: _bytes(leaf) for path, leaf in flatten_paths(tree).items()}
    whole = {
        path: sizes[path]
        for path, leaf in flatten_paths(tree).items()
        if leaf.sharding.is_fully_replicated
    }
    worst = sorted(whole.items(), key=lambda item: -item[1])[:5]
    return Replication(sum(sizes.values()), sum(whole.values()), tuple(worst))


def bytes_per_device(tree: Any) -> int:
    """Counts the bytes of `tree` (arrays or structs with shardings) on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _put(x: Any, where: NamedSharding) -> jax.Array:
    """Places one array; see `put`."""
    if where.is_fully_addressable:
        return jax.device_put(x, where)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        wrap = jax.jit(jax.random.wrap_key_data, out_shardings=where)
        return wrap(_put(jax.random.key_data(x), where))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=where)(x)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.LogicallyPartitioned)


def _boxes(tree: Any) -> list[tuple[str, Any]]:
    """Returns leaves by path, boxes as leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _names(leaf: Any) -> tuple[str | None, ...]:
    return tuple(leaf.names) if _is_box(leaf) else (None,) * len(leaf.shape)


def _check_used(placed: list[NamedSharding], mesh: Mesh, rules: str) -> None:
    """Rejects a mesh axis that splits no parameter; its devices would repeat work."""
    for axis in ("fsdp", "tensor"):
        if mesh.shape[axis] > 1 and not any(axis in leaf.spec for leaf in placed):
            raise UserError(
                f"config.mesh.{axis} is {mesh.shape[axis]}, but rules {rules!r} split no parameter "
                f"over it; set config.mesh.{axis}=1, or choose other rules."
            )


def _spec_text(spec: PartitionSpec) -> str:
    return ", ".join("-" if part is None else str(part) for part in spec)


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
