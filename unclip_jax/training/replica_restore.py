"""Restores that read the copies of a state along the mesh axis "data" only once.

In an ordinary restore every process reads the parts of its devices, which are the same for all
replicas (such as slices that train together). Here the processes of the first replica read, and the
others receive the state over the network between devices.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import type_handlers

from unclip_jax.core.checks import UserError

AXIS = "data"  # along which states have copies


def restore(path: epath.Path, abstract: Any) -> Any:
    """Restores a state.

    Args:
        path: location of the arrays in a checkpoint.
        abstract: ShapeDtypeStructs with the shardings of the result, on one mesh that passes
            `check`.

    Raises:
        Exception: raised by Orbax if the checkpoint is damaged.
    """
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    arrays = type_handlers.SingleReplicaArrayHandler(replica_axis_index=mesh.axis_names.index(AXIS))
    registry = type_handlers.create_type_handler_registry((jax.Array, arrays))
    arguments = jax.tree.map(
        lambda leaf: type_handlers.SingleReplicaArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        abstract,
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments)
        )


def check(mesh: Mesh) -> None:
    """Checks that the first of several replicas has its own processes, or that all share one.

    Raises:
        UserError: the mesh has one replica, or a process has devices in the first and in others.
    """
    replicas = np.moveaxis(mesh.devices, mesh.axis_names.index(AXIS), 0)
    check_processes([[device.process_index for device in replica.flat] for replica in replicas])


def check_processes(replicas: Sequence[Sequence[int]]) -> None:
    """Checks the processes of the devices of every replica; see `check`."""
    count = len(replicas)
    if count == 1:
        raise UserError(
            "config.train.single_replica_restore is True, but the mesh has one replica (mesh axis "
            "data is 1), which every process reads its part of; set it to False."
        )
    first, others = set(replicas[0]), {process for each in replicas[1:] for process in each}
    if first & others and len(first | others) > 1:
        raise UserError(
            f"config.train.single_replica_restore is True, but process {min(first & others)} has "
            f"devices of several of the {count} replicas (mesh axis data); set it to False, or "
            "config.mesh so that a replica is a whole number of processes."
        )
