"""Finite scalar quantisation: codes without a codebook (Mentzer et al., arXiv 2309.15505).

Each channel is bounded to a few levels and rounded; the code is the number whose digits, in the
mixed radix of the levels, are those of the channels. Nothing is learned and no code can die.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core.checks import UserError

MAX_CODES = 65_536  # codes are stored as uint16
SHRINK = 1.0 - 1e-3  # keeps the outermost levels within the open range of tanh
Values = Float[Array, "*b d"]


@dataclasses.dataclass(frozen=True)
class Levels:
    """The levels of every channel.

    Attributes:
        counts: levels per channel; five or more each work best (section 4.1 of the paper).

    Raises:
        UserError: no channel, a channel with fewer than three levels, or more codes than can be
            stored.
    """

    counts: tuple[int, ...]

    def __post_init__(self):
        if not self.counts or min(self.counts) < 3 or self.size > MAX_CODES:
            raise UserError(
                f"levels are {list(self.counts)}, which make {self.size} codes; give at least "
                f"three levels per channel and at most {MAX_CODES} codes, such as (8, 5, 5, 5)."
            )

    @property
    def size(self) -> int:
        """Number of codes."""
        return math.prod(self.counts)

    def quantise(self, features: Values) -> Values:
        """Returns the nearest values, multiples of 1 / (count // 2) in [-1, 1].

        The gradient is that of the bound: it passes the rounding unchanged.
        """
        bounded = self._bounded(features)
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        return rounded / _last(self._half_widths, rounded)

    def codes(self, values: Values) -> Int[Array, "*b"]:
        """Returns the codes of quantised values."""
        half, basis = _last(self._half_widths, values), _last(self._basis, values)
        digits = jnp.round(values * half).astype(jnp.int32) + half
        return jnp.sum(digits * basis, axis=-1)

    def values(self, codes: Int[Array, "*b"]) -> Values:
        """Returns the values of codes, the inverse of `codes`."""
        columns = codes[..., None]
        digits = columns // _last(self._basis, columns) % _last(np.array(self.counts), columns)
        half = _last(self._half_widths, columns)
        return (digits - half).astype(jnp.float32) / half

    def _bounded(self, features: Values) -> Values:
        """Squashes features to the range of the levels; 0 goes to 0, by the exact inverse."""
        half = (np.array(self.counts) - 1) * SHRINK / 2
        offset = np.where(np.array(self.counts) % 2 == 0, 0.5, 0.0)
        constants = (np.arctanh(offset / half), half, offset)
        shift, half, offset = (_last(np.asarray(x, np.float32), features) for x in constants)
        return jnp.tanh(features + shift) * half - offset

    @property
    def _half_widths(self) -> np.ndarray:
        return np.array(self.counts) // 2

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.counts[:-1]])


def _last(values: np.ndarray, x: Array) -> np.ndarray:
    """Returns one value per channel in the rank of `x`."""
    return np.reshape(values, (1,) * (x.ndim - 1) + (-1,))
