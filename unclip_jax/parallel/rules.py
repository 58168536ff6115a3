"""Sharding tables: logical axis names to mesh axes. To add a layout, add a table here.

A table maps every name of `axes.NAMES` to the mesh axis that splits it (None = none).
Three things still keep an axis whole, each visible in the replicated-bytes report of place.py:
gains and biases stay whole (gathering a few kB costs more latency than the memory it saves), an
axis that the mesh axis does not divide stays whole, and a mesh axis of one device splits nothing.
"""

from collections.abc import Mapping, Sequence

from jax.sharding import Mesh, PartitionSpec

from unclip_jax.core.checks import UserError, one_of, suggest
from unclip_jax.parallel.axes import NAMES

Table = Mapping[str, str | None]

_WHOLE: dict[str, str | None] = dict.fromkeys(NAMES)

# Every large kernel has exactly one of these two axes, so each is split exactly once. The narrow
# conditioning maps (time, z, context) without them stay whole: below 1 % of a paper-size U-Net.
_FSDP: dict[str, str | None] = {**_WHOLE, "embed": "fsdp", "conv_out": "fsdp"}

# Megatron's pairing (arXiv 1909.08053): the first map of a pair is split by output, the second by
# input, so one sum over "tensor" per block; convolutions by input channel for the same reason.
_FSDP_TP: dict[str, str | None] = {
    **_FSDP,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "conv_in": "tensor",
}

TABLES: dict[str, Table] = {"dp": _WHOLE, "fsdp": _FSDP, "fsdp_tp": _FSDP_TP}


def table(name: str) -> Table:
    """Returns the table called `name`.

    Raises:
        UserError: unknown name.
    """
    return TABLES[one_of("sharding rules", name, TABLES)]


def spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    *,
    table: Table,
    mesh: Mesh,
    path: str = "parameter",
) -> PartitionSpec:
    """Computes the PartitionSpec of one parameter.

    Args:
        names: one logical name per axis; None = unnamed, never split.
        shape: of the parameter.
        table: from names to mesh axes.
        mesh: whose axis sizes decide what divides.
        path: of the parameter, for messages.

    Raises:
        UserError: names that do not match the shape or the table, or two axes of one parameter on
            the same mesh axis.
    """
    if len(names) != len(shape):
        raise UserError(
            f"{path} has shape {tuple(shape)} but logical axes {tuple(names)}; name every axis."
        )
    targets = [_target(name, table, path) for name in names]
    used = [target for target in targets if target is not None]
    for axis in set(used):
        if used.count(axis) > 1:
            raise UserError(
                f"{path} with axes {tuple(names)} would be split twice over mesh axis {axis!r}; "
                "give one of its axes another name, or change the table in parallel/rules.py."
            )
    if sum(name != "layers" for name in names) < 2:
        return PartitionSpec()
    sizes = [1 if target is None else mesh.shape[target] for target in targets]
    parts = [
        target if size > 1 and length % size == 0 else None
        for target, size, length in zip(targets, sizes, shape, strict=True)
    ]
    return PartitionSpec(*parts)


def _target(name: str | None, table: Table, path: str) -> str | None:
    if name is None:
        return None
    if name not in table:
        raise UserError(f"{path} has unknown logical axis {name!r}.{suggest(name, table)}")
    return table[name]
