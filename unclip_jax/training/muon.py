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
import numpy as np
import optax
from jaxtyping import Array, Float

from unclip_jax.parallel import axes

# Quintic x -> a x + b x^3 + c x^5: steep at 0; five rounds map (0, 1] to about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
TINY = 1e-8  # keeps a zero gradient finite
LONG = 1.5  # ratio of the axes beyond which rounds of the Gram matrix take fewer products


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
        return _updates(blend, stacked), MuonState(count, mean)

    return optax.GradientTransformation(init, update)


def orthogonal(x: Float[Array, " n i o"]) -> Float[Array, " n i o"]:
    """Approximates U V' for each matrix U S V' of a stack; singular values become 0.7 to 1.2.

    Uses five Newton-Schulz rounds, with the shorter axis as rows. A round multiplies x by a
    polynomial of the Gram matrix x x'. These polynomials commute, so all rounds of a long matrix,
    such as a convolution's, run on its Gram matrix alone, and x is multiplied once at the end. For
    nearly square ones, multiplying x in every round takes fewer products.
    """
    tall = x.shape[1] > x.shape[2]
    x = jnp.swapaxes(x, 1, 2) if tall else x
    x = x / (jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) + TINY)
    short, long = x.shape[1:]
    x = _by_gram(x) if long > LONG * short else _by_rounds(x)
    return jnp.swapaxes(x, 1, 2) if tall else x


def _by_rounds(x: Float[Array, " n r l"]) -> Float[Array, " n r l"]:
    """Multiplies x in every round: 2 r² l + r³ multiplications each."""

    def improve(_: Any, x: Array) -> Array:
        return _polynomial(x @ jnp.swapaxes(x, 1, 2)) @ x

    return jax.lax.fori_loop(0, ROUNDS, improve, x)


def _by_gram(x: Float[Array, " n r l"]) -> Float[Array, " n r l"]:
    """Multiplies x once, by the product of all rounds: 2 r² l multiplications, and 17 r³."""

    def improve(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gram, last, factor = carry
        gram = last @ (last @ gram)
        last = _polynomial(gram)
        return gram, last, last @ factor

    gram = x @ jnp.swapaxes(x, 1, 2)
    first = _polynomial(gram)
    return jax.lax.fori_loop(1, ROUNDS, improve, (gram, first, first))[2] @ x


def _polynomial(gram: Float[Array, " n r r"]) -> Float[Array, " n r r"]:
    """Computes a I + b G + c G²; a round multiplies x by it."""
    a, b, c = COEFFICIENTS
    one = jnp.eye(gram.shape[1], dtype=gram.dtype)[None]
    return a * one + b * gram + c * gram @ gram


def _updates(blend: Any, stacked: Any) -> Any:
    """Orthogonalises all kernels; equal shapes form one stack, which the devices share."""
    matrices, structure = jax.tree.flatten(jax.tree.map(_as_matrices, blend, stacked))
    groups: dict[tuple[Any, int, int], list[int]] = {}
    for index, x in enumerate(matrices):
        groups.setdefault((x.dtype, *x.shape[1:]), []).append(index)
    for (_, rows, columns), indices in groups.items():
        counts = [matrices[index].shape[0] for index in indices]
        stack = _shared_by_devices(jnp.concatenate([matrices[index] for index in indices]))
        stack = math.sqrt(max(1.0, columns / rows)) * stack
        parts = jnp.split(stack, np.cumsum(counts)[:-1])
        for index, part in zip(indices, parts, strict=True):
            matrices[index] = part
    updates = jax.tree.unflatten(structure, matrices)
    return jax.tree.map(lambda u, x: u.reshape(x.shape), updates, blend)


def _as_matrices(x: Array, stacked: bool) -> Array:
    """Returns a kernel as matrices: its last axis is out, all others (except layers) are in."""
    return x.reshape(x.shape[0] if stacked else 1, -1, x.shape[-1])


def _shared_by_devices(x: Float[Array, " n i o"]) -> Float[Array, " n i o"]:
    """Computes `orthogonal`, every device some of the matrices."""
    count, shards = x.shape[0], axes.example_shards()
    if count == 1 or shards == 1:
        return orthogonal(x)
    x = jnp.pad(x, ((0, -count % shards), (0, 0), (0, 0)))
    return axes.by_example(orthogonal(axes.by_example(x)))[:count]
