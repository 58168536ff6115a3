"""A chain in float32, as the UnCLIPScheduler of diffusers computes it.

Public weights are used with that scheduler, whose rounding shows: 1 - alpha_bar keeps three digits
near t = 0, so that its last step returns 0.99947 x_0. The code those weights were trained with has
float64 tables, as `schedule` has; this one reproduces what people see, down to the indices of its
short chains (`respace.timesteps`).
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from unclip_jax.diffusion.schedule import Schedule

Single = Float[np.ndarray, " T"]
ONE = np.float32(1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class SingleSchedule(Schedule):
    """A `Schedule` all of whose tables are float32, computed in float32.

    Attributes:
        product: alpha_bar, which is not derived from the betas of a shortened chain.
    """

    product: Single

    def __post_init__(self) -> None:
        # the first of very few steps from t = 999 may round to exactly 1, which harms nothing
        assert np.all(self.beta > 0) and np.all(self.beta <= 1)

    @functools.cached_property
    def alpha_bar(self) -> Single:
        """Share of the variance of x_t that is signal."""
        return self.product

    @functools.cached_property
    def alpha_bar_prev(self) -> Single:
        """`alpha_bar` one step nearer to the data; 1 at index 0."""
        return np.append(ONE, self.product[:-1])

    def keep(self, positions: Int[np.ndarray, " n"]) -> "SingleSchedule":
        """The short chain; neighbours keep their beta, others get 1 - alpha_bar_t / alpha_bar_s."""
        product = self.product[positions]
        strided = ONE - product / np.append(ONE, product[:-1])
        neighbour = np.diff(positions, prepend=-1) == 1
        beta = np.where(neighbour, self.beta[positions], strided)
        return SingleSchedule(beta, self.timesteps[positions], product)


def in_single(schedule: Schedule) -> SingleSchedule:
    """The full chain `schedule` in float32: rounded betas, and the product of what they leave.

    The product runs in float64 over float32 factors and is rounded at each index, as PyTorch does
    on a CPU.
    """
    beta = schedule.beta.astype(np.float32)
    product = np.cumprod((ONE - beta).astype(np.float64)).astype(np.float32)
    return SingleSchedule(beta, schedule.timesteps, product)
