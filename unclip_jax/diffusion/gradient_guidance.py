"""Guidance by the gradient of a log-probability, as a wrapper of a denoiser or of a solver.

    algorithm 1   mean of p(x_s | x_t) + s Sigma g,          x_s drawn with the same Sigma
    algorithm 2   eps - s noise_t g,                         any solver
                  with g the gradient of log p(y | x_t) in x_t

p(x_s | x_t, y) is proportional to p(x_s | x_t) p(y | x_s); to first order in x_s the second factor
tilts a Gaussian, which moves its mean by Sigma g and nothing else. Both are ADM's (arXiv
2105.05233, section 4 and appendix H). p(y | x_t) is a classifier or a CLIP that was trained on
noised images; a clean one misjudges them. With s = 1 and the exact p(y | x_t) algorithm 2 gives the
exact posterior; no other scale does. The scale is off at 0, unlike that of classifier-free
guidance.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core.checks import UserError
from unclip_jax.core.types import PerExample, Steps
from unclip_jax.diffusion.guidance import Denoiser
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import Ancestral, Solver, StepTable
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
Scale = float | Float[Array, ""] | Float[Array, " b"]
# x_t and timesteps -> gradient of log p(y | x_t) in x_t, row by row
Gradient = Callable[[X, Steps], X]


def gradient_of(log_probability: Callable[[X, Steps], PerExample]) -> Gradient:
    """Returns the gradient of log p(y | x_t), whose rows must not depend on each other.

    Args:
        log_probability: (x_t, t) -> log p(y | x_t) of every row, up to a constant.
    """

    def gradient(x_t: X, t: Steps) -> X:
        return jax.grad(lambda x: jnp.sum(log_probability(x, t)))(x_t)

    return gradient


def shifted(denoise: Denoiser, gradient: Gradient, *, schedule: Schedule, scale: Scale) -> Denoiser:
    """Returns a denoiser guided by algorithm 2; thresholds belong inside, as in ADM's code.

    Args:
        denoise: the denoiser to guide.
        gradient: of log p(y | x_t).
        schedule: the trained chain.
        scale: s, one for all or one per example; 0 = off.
    """

    def guided(x_t: X, t: Steps) -> Prediction:
        pred, level = denoise(x_t, t), schedule.level(t, ndim=x_t.ndim)
        step = _scaled(gradient(x_t, t), scale)
        x_0 = pred.x_0 + level.noise**2 / level.signal * step
        return Prediction(x_0, pred.eps - level.noise * step, pred.var_frac)

    return guided


@dataclasses.dataclass(frozen=True)
class ShiftedMean(Solver):
    """Ancestral sampling guided by algorithm 1: the mean moves by the variance of the step.

    Attributes:
        rule: the ancestral rule.
        gradient: of log p(y | x_t), asked at timesteps of the trained chain.
        scale: s, one for all or one per example; 0 = off.

    Raises:
        UserError: the rule has no variance by which the mean could move.
    """

    rule: Solver
    gradient: Gradient
    scale: Scale

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Ancestral):
            raise UserError(
                f"guidance of the mean needs ancestral sampling, not {type(self.rule).__name__}; "
                "guide eps instead (shifted), which any sampler can."
            )

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def columns(self, schedule: Schedule) -> Any:
        """Returns the columns of the rule."""
        return self.rule.columns(schedule)

    def advance(
        self, x: X, memory: Any, *, pred: Prediction, at: StepTable, noise: X
    ) -> tuple[X, Any]:
        """Takes one step of the rule, and one along the gradient."""
        assert isinstance(self.rule, Ancestral)
        moved, memory = self.rule.advance(x, memory, pred=pred, at=at, noise=noise)
        variance = jnp.exp(self.rule.log_variance(pred, at.columns))
        t = jnp.broadcast_to(jnp.asarray(at.t), (len(x),))
        return moved + variance * _scaled(self.gradient(x, t), self.scale), memory


def _scaled(gradient: X, scale: Scale) -> X:
    scale = jnp.asarray(scale, jnp.float32)
    return gradient * scale.reshape(scale.shape + (1,) * (gradient.ndim - 1 if scale.ndim else 0))
