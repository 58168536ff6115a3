"""Muon: momentum with nearly orthogonalised matrices (Jordan et al. 2024).

    m <- beta m + (1 - beta) g
    u = orthogonal(beta m + (1 - beta) g) max(1, out / in)^1/2

with both terms of u corrected for their start at zero. Source: github.com/KellerJordan/Muon and
Liu et al., arXiv 2502.16982. The result equals that of `optax.contrib.muon` (tested), whose
unrolled Newton-Schulz iterations take XLA on the CPU twice as long to compile and run.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# Quintic x -> a x + b x^3 + c x^5: steep at 0; five rounds map (0, 1] to about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
TINY = 1e-8  # keeps a zero gradient finite


class MuonState(NamedTuple):
    """Number of steps, and the momentum of every matrix."""

    count: Any
    momentum: Any


def scale_by_muon(stacked: Any, *, momentum: float) -> optax.GradientTransformation:
    """Transforms gradients to updates with singular values near max(1, out / in)^1/2.

    Args:
        stacked: a tree like the parameters; True where axis 0 counts scanned layers, each of which
            is its own matrix.
        momentum: beta above.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        del params
        count = optax.safe_increment(state.count)
        mean = optax.tree.update_moment(updates, state.momentum, momentum, 1)
        ahead = optax.tree.bias_correction(mean, momentum, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, momentum, count)
        blend = jax.tree.map(lambda m, g: momentum * m + (1.0 - momentum) * g, ahead, now)
        return jax.tree.map(_updated, blend, stacked), MuonState(count, mean)

    return optax.GradientTransformation(init, update)


def orthogonal(x: Float[Array, " n i o"]) -> Float[Array, " n i o"]:
    """Approximates U V' for each matrix U S V' of a stack; singular values become 0.7 to 1.2.

    Uses five Newton-Schulz rounds, with the shorter axis as rows. A round multiplies x by a
    polynomial of the Gram matrix x x'. These polynomials commute, so all rounds run on the small
    Gram matrix and x, which is long for a convolution, is multiplied only once.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = jnp.swapaxes(x, 1, 2) if tall else x
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + TINY)
    one = jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype), (x.shape[0],) + 2 * x.shape[1:2])

    def improve(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, gram = carry
        round_ = a * one + b * gram + c * gram @ gram
        return round_ @ factor, round_ @ gram @ round_

    factor, _ = jax.lax.fori_loop(0, ROUNDS, improve, (one, x @ jnp.swapaxes(x, 1, 2)))
    x = factor @ x
    return jnp.swapaxes(x, 1, 2) if tall else x


def _updated(x: Array, stacked: bool) -> Array:
    """Updates a kernel as matrices: its last axis is out, all others (except layers) are in."""
    count = x.shape[0] if stacked else 1
    matrices = x.reshape(count, -1, x.shape[-1])
    scale = math.sqrt(max(1.0, matrices.shape[2] / matrices.shape[1]))
    return (scale * orthogonal(matrices)).reshape(x.shape)
