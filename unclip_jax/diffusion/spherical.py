"""Spherical interpolation of embeddings and of noise.

Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; unCLIP (arXiv
2204.06125, sections 3.2 and 3.3) interpolates both z_img and x_T this way.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

X = Float[Array, " b *s"]


def slerp(a: X, b: X, theta: float | Float[Array, ""] | Float[Array, " b"]) -> X:
    """Returns the point at fraction `theta` of the arc from `a` to `b`, one angle per example.

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
    """Returns the angle between two vectors, accurate for small ones too (unlike arccos)."""
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    size_a = jnp.linalg.norm(a, axis=1, keepdims=True)
    size_b = jnp.linalg.norm(b, axis=1, keepdims=True)
    # Kahan's form: |b| a and |a| b have equal norms and enclose the same angle
    gap = jnp.linalg.norm(a * size_b - b * size_a, axis=1)
    total = jnp.linalg.norm(a * size_b + b * size_a, axis=1)
    return 2.0 * jnp.arctan2(gap, total)


def mean(
    points: Float[Array, " n *s"],
    *,
    weights: Float[Array, " n"],
    iterations: int = 32,
) -> Float[Array, " *s"]:
    """Returns the weighted mean of several vectors on the sphere, at their weighted mean norm.

    It minimises sum_i w_i angle(m, p_i)^2: from the normalised weighted sum, the weighted mean of
    the points' logarithms is followed until it vanishes (Buss & Fillmore 2001, "Spherical averages
    and applications to spherical splines and interpolation", algorithm A1). With two points it is
    `slerp` at their relative weight. It is unique while all points lie in one open half-sphere.

    Args:
        points: the vectors, whole arrays taken as one each.
        weights: not negative, at least one positive; they need not sum to 1.
        iterations: steps of that descent; one is exact for two points.
    """
    flat = points.reshape(points.shape[0], -1)
    weights = weights / jnp.sum(weights)
    norms = jnp.linalg.norm(flat, axis=1)
    units = flat / jnp.maximum(norms, 1e-12)[:, None]

    def follow(_, m: Float[Array, " d"]) -> Float[Array, " d"]:
        angles = _angle(jnp.broadcast_to(m[None], units.shape), units)
        tangents = units - (units @ m)[:, None] * m[None]
        sizes = jnp.linalg.norm(tangents, axis=1)
        logs = tangents * (angles / jnp.maximum(sizes, 1e-12))[:, None]
        step = weights @ logs
        length = jnp.linalg.norm(step)
        moved = jnp.cos(length) * m + jnp.sinc(length / jnp.pi) * step
        return moved / jnp.linalg.norm(moved)

    start = weights @ units
    start = start / jnp.maximum(jnp.linalg.norm(start), 1e-12)
    middle = jax.lax.fori_loop(0, iterations, follow, start)
    return (middle * (weights @ norms)).reshape(points.shape[1:])
