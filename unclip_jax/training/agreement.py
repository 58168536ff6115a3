"""What several processes must know of each other while they train: the same facts, the same end.

With one process everything here is immediate and costs nothing.
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
from unclip_jax.parallel.mesh import AXES, replicated
from unclip_jax.training.fingerprint import differences


def gather(value: Any) -> list[Any]:
    """A JSON-ready value of every process, in the order of the processes; all must call this."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """All processes must have been started alike.

    Args:
        facts: JSON-ready: config, code version, places.

    Raises:
        UserError: in every process, naming the first fact that differs and where.
    """
    everyone = gather(dict(facts))
    for index, other in enumerate(everyone):
        for key, first, here in differences(everyone[0], other):
            raise UserError(
                f"the processes were not started alike: {key} is {first} in process 0 and {here} "
                f"in process {index}. Start all of them with the same code and command."
            )


class Agreement:
    """A request of any process becomes known to all after the same step, without waiting for it.

    Every process asks after every step. With several processes the largest request is found on the
    devices behind that step, and read one step later, when it is there.
    """

    def __init__(self, mesh: Mesh):
        """Agree among the processes of `mesh`."""
        self._alone = jax.process_count() == 1
        self._mesh = mesh
        self._pending: jax.Array | None = None
        self._where = NamedSharding(mesh, PartitionSpec(AXES))
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def __call__(self, number: int | None) -> int | None:
        """The largest request so far known to all, or None; `number` is this process's."""
        if self._alone:
            return number
        own = np.full(len(self._mesh.local_devices), number or 0, np.int32)
        asked = jax.make_array_from_process_local_data(self._where, own, (self._mesh.size,))
        known, self._pending = self._pending, self._largest(asked)
        return None if known is None else int(jax.device_get(known)) or None
