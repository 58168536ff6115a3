"""Consistency checks and consensus among the processes of one program.

With a single process everything here returns at once.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unclip_jax.core.checks import UserError
from unclip_jax.core.trees import json_differences
from unclip_jax.parallel.mesh import AXES, replicated


def gather(value: Any) -> list[Any]:
    """Gathers a JSON-ready value from every process, in rank order; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def first_rows(part: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Returns the first `count` rows of a batch, of which every process has one equal part.

    The parts are consecutive in rank order. All processes must call it, and all receive the rows,
    or the whole batch if it has fewer.
    """
    pieces: list[dict[str, np.ndarray]] = []
    for source in range(jax.process_count()):
        piece = {name: x[:count] for name, x in part.items()}
        if jax.process_count() > 1:
            own = source == jax.process_index()
            piece = multihost_utils.broadcast_one_to_all(piece, is_source=own)
        pieces.append({name: np.asarray(x) for name, x in piece.items()})
        count -= len(next(iter(piece.values())))
        if count <= 0:
            break
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in part}


def check_same(facts: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same settings.

    Args:
        facts: JSON-ready: config, code version, places.

    Raises:
        UserError: in every process, naming the first fact that differs and where.
    """
    gathered = gather(dict(facts))
    for index, other in enumerate(gathered):
        for key, first, here in json_differences(gathered[0], other):
            raise UserError(
                f"the processes were not started alike: {key} is {first} in process 0 and {here} "
                f"in process {index}. Start all of them with the same code and command."
            )


class ConsensusStop:
    """Spreads a stop request of any process to all of them after the same step, without blocking.

    Every process calls it after every step. With several processes the largest request is reduced
    on the devices after that step and read one step later.
    """

    def __init__(self, mesh: Mesh):
        """Spreads requests among the processes that `mesh` spans."""
        self._single = jax.process_count() == 1
        self._mesh = mesh
        self._pending: jax.Array | None = None
        self._sharding = NamedSharding(mesh, PartitionSpec(AXES))
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def __call__(self, number: int | None) -> int | None:
        """Returns the largest request that all processes know, or None; `number` is this one's."""
        if self._single:
            return number
        own = np.full(len(self._mesh.local_devices), number or 0, np.int32)
        request = jax.make_array_from_process_local_data(self._sharding, own, (self._mesh.size,))
        previous, self._pending = self._pending, self._largest(request)
        return None if previous is None else int(jax.device_get(previous)) or None
