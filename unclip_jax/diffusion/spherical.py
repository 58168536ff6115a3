"""Spherical interpolation of embeddings and of noise.

Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; unCLIP (arXiv
2204.06125, sections 3.2 and 3.3) interpolates both z_img and x_T this way.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, " b *s"]


def slerp(a: X, b: X, theta: float | Float[Array, ""] | Float[Array, " b"]) -> X:
    """The point at fraction `theta` of the arc from `a` to `b`, one angle per example.

        [sin((1 - theta) w) a + sin(theta w) b] / sin w,   w the angle between a and b

    The angle is taken over all axes but the first, so that an image is one vector. The ends are
    exact, and vectors of equal norm keep it. Where the arc is not defined (parallel, opposite or
    zero vectors) the interpolation is linear.

    Args:
        a: where theta = 0; [b z] or [b h w c].
        b: where theta = 1.
        theta: in [0, 1], one for all or one per example.
    """
    tail = (1,) * (a.ndim - 1)
    theta = jnp.asarray(theta, jnp.float32)
    theta = theta.reshape(theta.shape + tail) if theta.ndim else theta
    angle = _angle(a, b).reshape((-1, *tail))
    whole = jnp.sin(angle)
    curved = whole > 1e-4  # a smaller arc differs from its chord by less than float32 resolves
    whole, angle = jnp.where(curved, whole, 1.0), jnp.where(curved, angle, 0.0)
    weight_a = jnp.where(curved, jnp.sin((1.0 - theta) * angle) / whole, 1.0 - theta)
    weight_b = jnp.where(curved, jnp.sin(theta * angle) / whole, theta)
    return weight_a * a + weight_b * b


def _angle(a: X, b: X) -> Float[Array, " b"]:
    """The angle between two vectors, accurate for small ones too (unlike the arc cosine)."""
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    size_a = jnp.linalg.norm(a, axis=1, keepdims=True)
    size_b = jnp.linalg.norm(b, axis=1, keepdims=True)
    # Kahan's form: |b| a and |a| b have equal norms and enclose the same angle
    gap = jnp.linalg.norm(a * size_b - b * size_a, axis=1)
    total = jnp.linalg.norm(a * size_b + b * size_a, axis=1)
    return 2.0 * jnp.arctan2(gap, total)
