"""Training losses: prediction error and the variational term of learned variances.

Source: DDPM (arXiv 2006.11239) section 3, improved DDPM (arXiv 2102.09672) equations 15 and 16.
All losses are per example, means over every other axis, so that a batch mean is the objective.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from unclip_jax.core import checks
from unclip_jax.core.types import PerExample, Steps
from unclip_jax.diffusion import process
from unclip_jax.diffusion.process import AlphaBar, Prediction, Target, X
from unclip_jax.diffusion.schedule import Schedule, at

HALF_BIN = 1.0 / 255.0  # 256 grey levels on [-1, 1]


@dataclasses.dataclass(frozen=True)
class Weighting:
    """The weight of each noise level.

    Attributes:
        name: "uniform" (plain mean squared error of the target, the papers' choice) or "snr_clip"
            (the error of x_0 weighted by clip(signal^2 / noise^2), whatever the target is).
        snr_min: least weight under "snr_clip".
        snr_max: greatest weight under "snr_clip".
    """

    name: str = "uniform"
    snr_min: float = 0.0
    snr_max: float = 5.0

    def __post_init__(self) -> None:
        checks.one_of("loss weighting", self.name, ["uniform", "snr_clip"])
        if not 0 <= self.snr_min <= self.snr_max:
            raise checks.UserError(
                f"loss weighting has snr_min {self.snr_min} and snr_max {self.snr_max}; "
                "it needs 0 <= snr_min <= snr_max."
            )


class HybridLoss(NamedTuple):
    """The training loss of a learned-variance model and its parts, per example.

    Attributes:
        total: the sum that is differentiated.
        prediction: the prediction loss.
        variational: the variational term in bits per dimension, before its weight.
    """

    total: Float[Array, " b"]
    prediction: Float[Array, " b"]
    variational: Float[Array, " b"]


def prediction_loss(
    out: X,
    *,
    target: Target,
    x_0: X,
    eps: X,
    alpha_bar: AlphaBar,
    weighting: Weighting = Weighting(),
) -> PerExample:
    """Returns the mean squared error of a network's output, computed in float32."""
    ideal = process.target_value(target, x_0=x_0, eps=eps, alpha_bar=alpha_bar)
    error = jnp.square(out.astype(jnp.float32) - ideal)
    if weighting.name == "snr_clip":
        error = error * _snr_weight(target, alpha_bar, weighting)
    return _mean(error)


def hybrid_loss(
    out: X,
    var_frac: X,
    *,
    target: Target,
    x_0: X,
    eps: X,
    t: Steps,
    schedule: Schedule,
    weighting: Weighting = Weighting(),
) -> HybridLoss:
    """Returns the prediction loss plus the variational term that trains the variance only.

    The mean of the variational term is held constant (improved DDPM section 3.1). Its weight is
    0.001 T: 1 at the usual T = 1000.

    Args:
        out: the half of the network's output that predicts `target`.
        var_frac: the half that interpolates the variance.
        target: the quantity that `out` predicts.
        x_0: the clean sample, in [-1, 1]. Not clipped here, nor is the prediction.
        eps: the noise; x_t is made from it as in training.
        t: positions in `schedule`, which here is the full chain.
        schedule: the chain that the model is trained on.
        weighting: of the prediction loss.
    """
    level = schedule.level(t, ndim=x_0.ndim)
    simple = prediction_loss(
        out, target=target, x_0=x_0, eps=eps, alpha_bar=level, weighting=weighting
    )
    pred = process.to_prediction(
        jax.lax.stop_gradient(out),
        process.q_sample(x_0, eps, alpha_bar=level),
        target=target,
        alpha_bar=level,
        var_frac=var_frac,
    )
    bits = variational_bound_term(pred, x_0=x_0, t=t, schedule=schedule)
    return HybridLoss(simple + bits * (schedule.num_timesteps / 1000.0), simple, bits)


def variational_bound_term(pred: Prediction, *, x_0: X, t: Steps, schedule: Schedule) -> PerExample:
    """Returns a term of the variational bound in bits per dimension (iDDPM equations 4 to 7).

    For t > 0 the divergence of the true posterior from the model's Gaussian; at t = 0 the negative
    log-likelihood of 8-bit values. Both means share x_t, so they differ by the x_0 part alone.

    Args:
        pred: with `var_frac`.
        x_0: the clean sample, on the 8-bit grid of [-1, 1] if t = 0 is to mean anything.
        t: positions in `schedule`.
        schedule: the chain.
    """
    assert pred.var_frac is not None, "a learned variance needs Prediction.var_frac"
    floor = at(schedule.log_beta_tilde_clipped, t, ndim=x_0.ndim)
    log_var = process.log_variance(
        pred.var_frac, log_beta=at(schedule.log_beta, t, ndim=x_0.ndim), log_beta_tilde=floor
    )
    mean_gap = at(schedule.posterior_x_0, t, ndim=x_0.ndim) * (x_0 - pred.x_0)
    divergence = _gaussian_divergence(mean_gap, log_var_p=floor, log_var_q=log_var)
    surprise = -discretised_log_likelihood(x_0, mean=pred.x_0, log_std=0.5 * log_var)
    return jnp.where(t == 0, _mean(surprise), _mean(divergence)) / math.log(2.0)


def discretised_log_likelihood(x: X, *, mean: X, log_std: X) -> X:
    """Returns the log-probability of 8-bit values under a Gaussian in 256 bins (DDPM equation 13).

    `x` lies on the grid of bin centres in [-1, 1]; the two outer bins extend to infinity. Values
    are in nats, floored at log(1e-12).
    """
    inverse_std = jnp.exp(-log_std)
    gap = x - mean
    # By symmetry the bin is measured on the left tail, where float32 has digits to spare.
    left = -jnp.abs(gap)
    inner = ndtr((left + HALF_BIN) * inverse_std) - ndtr((left - HALF_BIN) * inverse_std)
    lowest = ndtr((gap + HALF_BIN) * inverse_std)
    highest = ndtr((HALF_BIN - gap) * inverse_std)
    mass = jnp.where(x < -0.999, lowest, jnp.where(x > 0.999, highest, inner))
    return jnp.log(jnp.maximum(mass, 1e-12))


def _gaussian_divergence(mean_gap: X, *, log_var_p: Float[Array, " b *ones"], log_var_q: X) -> X:
    """Returns KL(p || q) of two diagonal Gaussians, per dimension, in nats."""
    ratio = log_var_p - log_var_q
    return 0.5 * (jnp.exp(ratio) - 1.0 - ratio + jnp.square(mean_gap) * jnp.exp(-log_var_q))


def _snr_weight(target: Target, alpha_bar: AlphaBar, weighting: Weighting) -> Array:
    """Returns clip(snr) over the factor from a squared x_0 error to that of `target`."""
    signal, noise = process.as_level(alpha_bar)
    snr = jnp.square(signal / noise)
    per_x_0 = {Target.X_0: 1.0, Target.EPS: snr, Target.V: 1.0 / jnp.square(noise)}[target]
    return jnp.clip(snr, weighting.snr_min, weighting.snr_max) / per_x_0


def _mean(values: X) -> PerExample:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)
