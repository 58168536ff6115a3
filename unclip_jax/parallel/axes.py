"""The closed set of logical axis names that parameters are born with.

A layer says what each axis of a parameter *is*; one table in rules.py says where it goes. A name
outside this set is a mistake, never a silently replicated parameter.
"""

from typing import Any

from flax import linen as nn

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


def sharded(init: nn.initializers.Initializer, *names: str | None) -> Any:
    """The initialiser `init` whose parameter carries one logical name per axis (None = unnamed).

    Raises:
        UserError: a name that is not in NAMES.
    """
    for name in names:
        if name is not None and name not in NAMES:
            raise UserError(f"unknown logical axis {name!r}.{suggest(name, NAMES)}")
    return nn.with_logical_partitioning(init, names)
