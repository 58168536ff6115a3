"""A noise schedule in float32, as the UnCLIPScheduler of diffusers computes it.

Public weights are used with that scheduler, whose rounding is visible: 1 - alpha_bar keeps three
digits near t = 0, so that its last step returns 0.99947 x_0. The code that trained those weights
has float64 tables, as `schedule` has; this one reproduces the images that people know, down to the
indices of its short chains (`respace.timesteps`).
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from unclip_jax.diffusion.schedule import Schedule

Float32Table = Float[np.ndarray, " T"]
ONE = np.float32(1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Float32Schedule(Schedule):
    """A `Schedule` whose tables are all float32, computed in float32.

    Attributes:
        product: alpha_bar, which is not derived from the betas of a shortened chain.
        exact: beta is 1 - the ratio of alpha_bar everywhere, and that ratio, not 1 - beta, is in
            the weight of x_t, as in DDPMScheduler, whose last step returns x_0.
    """

    product: Float32Table
    exact: bool = False

    def __post_init__(self) -> None:
        # a first step far from t = 999 may round to exactly 1
        assert np.all(self.beta > 0) and np.all(self.beta <= 1)

    @functools.cached_property
    def alpha_bar(self) -> Float32Table:
        """Share of the variance of x_t that is signal."""
        return self.product

    @functools.cached_property
    def alpha_bar_prev(self) -> Float32Table:
        """`alpha_bar` one step nearer to the data; 1 at index 0."""
        return np.append(ONE, self.product[:-1])

    @functools.cached_property
    def posterior_x_t(self) -> Float32Table:
        """Weight of x_t in the posterior mean.

        A long first step from t = 999 keeps a share of alpha_bar of 1e-8, which is lost in a beta
        that rounds to 1.
        """
        alpha = self.product / self.alpha_bar_prev if self.exact else ONE - self.beta
        return np.sqrt(alpha) * (ONE - self.alpha_bar_prev) / (ONE - self.product)

    def keep(self, positions: Int[np.ndarray, " n"]) -> "Float32Schedule":
        """Returns a short chain; neighbours keep beta, others get 1 - their ratio of alpha_bar."""
        product = self.product[positions]
        strided = ONE - product / np.append(ONE, product[:-1])
        neighbour = np.diff(positions, prepend=-1) == 1
        beta = strided if self.exact else np.where(neighbour, self.beta[positions], strided)
        return dataclasses.replace(
            self, beta=beta, timesteps=self.timesteps[positions], product=product
        )


def to_float32(schedule: Schedule, *, exact: bool = False) -> Float32Schedule:
    """Returns a full chain in float32: rounded betas, and the product of 1 - beta.

    The product runs in float64 over float32 factors and is rounded at each index, as PyTorch does
    on a CPU. With `exact` the betas follow from it again, as in DDPMScheduler.
    """
    beta = schedule.beta.astype(np.float32)
    product = np.cumprod((ONE - beta).astype(np.float64)).astype(np.float32)
    full = Float32Schedule(beta, schedule.timesteps, product, exact)
    return full.keep(np.arange(schedule.num_timesteps)) if exact else full
