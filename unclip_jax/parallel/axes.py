"""The closed set of logical axis names of parameters, and the mesh axes of examples.

A layer names each axis of a parameter; a table in rules.py maps names to mesh axes. A name outside
this set is an error, never a silently replicated parameter.
"""

import math
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from unclip_jax.core.checks import UserError, suggest

NAMES: tuple[str, ...] = (
    "embed",  # width of a transformer's residual stream
    "heads",  # heads times head size, of q, k, v and of the input of the output projection
    "mlp",  # hidden width of a transformer's MLP
    "vocab",  # rows of a token table
    "position",  # rows of a position table
    "conv_in",  # input channels of a convolution or of a U-Net linear layer
    "conv_out",  # output channels of the same
    "time",  # timestep features and the embedding made of them
    "z",  # a CLIP embedding
    "context",  # width of the text features that a U-Net attends to
    "norm",  # gains and biases of norms
    "out",  # a small output: image channels, projected embedding
    "layers",  # scanned layers
)

EXAMPLES: tuple[str, ...] = ("data", "fsdp")  # mesh axes over which axis 0 of activations is split


def by_example(x: Shaped[Array, " b *s"]) -> Shaped[Array, " b *s"]:
    """Constrains activations: axis 0 sharded like the batch, the others at XLA's choice.

    With parameters split over "fsdp" too, XLA has a choice: fetch them, or spread the activations'
    width over "fsdp" and add up partial products, which at the sizes of the paper moves hundreds of
    times as many bytes. Networks call this at the end of every block. It has an effect only in
    functions traced on a mesh (`mesh.traced_on`), and none inside `jax.shard_map`.
    """
    shards = example_shards()
    if shards == 1 or x.shape[0] % shards:
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(EXAMPLES, *free))


def example_shards() -> int:
    """Returns the number of shards of `by_example`; 1 where it has no effect."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not {*EXAMPLES} <= {*mesh.auto_axes}:
        return 1
    return math.prod(mesh.shape[axis] for axis in EXAMPLES)


def sharded(init: nn.initializers.Initializer, *names: str | None) -> Any:
    """Wraps `init` so that its parameter carries one logical name per axis (None = unnamed).

    Raises:
        UserError: a name that is not in NAMES.
    """
    for name in names:
        if name is not None and name not in NAMES:
            raise UserError(f"unknown logical axis {name!r}.{suggest(name, NAMES)}")
    return nn.with_logical_partitioning(init, names)
