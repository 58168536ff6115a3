"""The contrastive loss between encoded conditions and frozen targets, with mixed conditions.

Source: MindEye (arXiv 2305.18274, section 3.3, BiMixCo): a condition that is lambda of example i
and 1 - lambda of example j is to match target i with probability lambda and target j with the rest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.types import Key


class Mixture(NamedTuple):
    """A mixed batch: x, the share of its own example in each row, and the other example."""

    x: Float[Array, " b f"]
    share: Float[Array, " b"]
    other: Int[Array, " b"]


def mixed(x: Float[Array, " b f"], *, mixup: float, key: Key) -> Mixture:
    """Mixes every row with another one by a weight from Beta(mixup, mixup); 0 = not at all."""
    size = len(x)
    if not mixup:
        return Mixture(x, jnp.ones(size), jnp.arange(size))
    other = jax.random.permutation(rng.fold(key, "other"), size)
    share = jax.random.beta(rng.fold(key, "share"), mixup, mixup, (size,))
    return Mixture(x * share[:, None] + x[other] * (1.0 - share[:, None]), share, other)


def losses(
    projected: Float[Array, " b z"],
    targets: Float[Array, " b z"],
    *,
    scale: Float[Array, ""],
    share: Float[Array, " b"],
    other: Int[Array, " b"],
) -> Float[Array, " b"]:
    """Returns the cross-entropy of every example, the mean of both directions.

    Args:
        projected: encoded (mixed) conditions of norm 1.
        targets: of norm 1.
        scale: inverse temperature.
        share: as in `Mixture`.
        other: likewise.
    """
    size = len(projected)
    rows = jnp.arange(size)
    truth = jnp.zeros((size, size)).at[rows, rows].add(share).at[rows, other].add(1.0 - share)
    scores = scale * jnp.einsum("b z, m z -> b m", projected, targets)
    forward = -jnp.sum(truth * jax.nn.log_softmax(scores, axis=1), axis=1)
    backward = -jnp.sum(truth.T * jax.nn.log_softmax(scores.T, axis=1), axis=1)
    return (forward + backward) / 2
