"""Operations on arrays that several packages need."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Rows = TypeVar("Rows", Float[Array, "*b z"], Float[np.ndarray, "*b z"])

MIN_NORM = 1e-12


def unit(z: Rows) -> Rows:
    """Returns rows scaled to norm 1, in the library (JAX or NumPy) and type of `z`.

    Rows shorter than 1e-12 are divided by 1e-12, and the norm's gradient is 0 there.
    """
    xp = np if isinstance(z, np.ndarray) else jnp
    square = xp.sum(z * z, axis=-1, keepdims=True)
    return z / xp.sqrt(xp.maximum(square, MIN_NORM**2))
