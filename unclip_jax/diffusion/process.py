"""The forward process and every conversion among x_0, eps and v.

`alpha_bar` below is a float32 array that broadcasts against x, as `schedule.at` makes, or the exact
`Level` of `Schedule.level`, which is better within a few steps of t = 0.
Source: DDPM (arXiv 2006.11239) equations 4, 7, 9, 11; v from arXiv 2202.00512, appendix D.
"""

import enum
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from unclip_jax.core import checks
from unclip_jax.diffusion.schedule import Level

X = Float[Array, " b *s"]
AlphaBar = Float[Array, "..."] | Level


class Target(enum.Enum):
    """The quantity that a network is trained to output."""

    X_0 = "x_0"
    EPS = "eps"
    V = "v"

    @classmethod
    def parse(cls, name: str) -> "Target":
        """Returns the target called `name` in configs.

        Raises:
            UserError: no target has this name.
        """
        return cls(checks.one_of("prediction target", name, [target.value for target in cls]))


class Prediction(NamedTuple):
    """A denoiser's prediction at x_t, in both forms, consistent with each other.

    Attributes:
        x_0: the clean sample.
        eps: the noise.
        var_frac: raw variance interpolant of improved DDPM equation 15, or None: -1 means
            beta_tilde, 1 means beta, in log space; not squashed.
    """

    x_0: Float[Array, " b *s"]
    eps: Float[Array, " b *s"]
    var_frac: Float[Array, " b *s"] | None = None


def q_sample(x_0: X, eps: X, *, alpha_bar: AlphaBar) -> X:
    """Returns x_t from the clean sample and the noise (DDPM equation 4)."""
    signal, noise = as_level(alpha_bar)
    return signal * x_0 + noise * eps


def target_value(target: Target, *, x_0: X, eps: X, alpha_bar: AlphaBar) -> X:
    """Returns the ideal output of a network with this target; v is signal eps - noise x_0."""
    if target is Target.X_0:
        return x_0
    if target is Target.EPS:
        return eps
    signal, noise = as_level(alpha_bar)
    return signal * eps - noise * x_0


def to_prediction(
    out: X, x_t: X, *, target: Target, alpha_bar: AlphaBar, var_frac: X | None = None
) -> Prediction:
    """Returns a network's raw output, in any float type, as a float32 `Prediction`."""
    out, x_t = out.astype(jnp.float32), x_t.astype(jnp.float32)
    var_frac = None if var_frac is None else var_frac.astype(jnp.float32)
    if target is Target.X_0:
        return from_x_0(out, x_t, alpha_bar=alpha_bar, var_frac=var_frac)
    if target is Target.EPS:
        return from_eps(out, x_t, alpha_bar=alpha_bar, var_frac=var_frac)
    signal, noise = as_level(alpha_bar)
    return Prediction(signal * x_t - noise * out, noise * x_t + signal * out, var_frac)


def from_x_0(x_0: X, x_t: X, *, alpha_bar: AlphaBar, var_frac: X | None = None) -> Prediction:
    """Returns the prediction whose clean sample is `x_0`."""
    signal, noise = as_level(alpha_bar)
    return Prediction(x_0, (x_t - signal * x_0) / noise, var_frac)


def from_eps(eps: X, x_t: X, *, alpha_bar: AlphaBar, var_frac: X | None = None) -> Prediction:
    """Returns the prediction whose noise is `eps`."""
    signal, noise = as_level(alpha_bar)
    return Prediction((x_t - noise * eps) / signal, eps, var_frac)


def with_x_0(pred: Prediction, x_0: X, x_t: X, *, alpha_bar: AlphaBar) -> Prediction:
    """Returns `pred` with another clean sample, such as a clipped one, and the noise to match."""
    return from_x_0(x_0, x_t, alpha_bar=alpha_bar, var_frac=pred.var_frac)


def log_variance(var_frac: X, *, log_beta: Array, log_beta_tilde: Array) -> X:
    """Returns the log of the learned reverse variance, linear in its bounds (ADM equation 1)."""
    frac = (var_frac + 1.0) / 2.0
    return frac * log_beta + (1.0 - frac) * log_beta_tilde


def static_threshold(x_0: X, *, limit: float = 1.0) -> X:
    """Returns `x_0` clipped to [-limit, limit]; images use 1."""
    return jnp.clip(x_0, -limit, limit)


def dynamic_threshold(x_0: X, *, percentile: float = 99.5, cap: float | None = None) -> X:
    """Applies Imagen's dynamic threshold (arXiv 2205.11487, section 2.3).

    Each image is clipped at the given percentile of its own |x_0| and divided by it, unless that
    percentile is below 1, in which case it is clipped to [-1, 1].

    Args:
        x_0: predicted images.
        percentile: of the absolute values of one image.
        cap: the largest value to divide by (DeepFloyd IF); 1 clips to [-1, 1], None = any (the
            paper).

    Raises:
        UserError: the percentile is outside [0, 100].
    """
    checks.in_range("dynamic threshold percentile", percentile, 0, 100)
    sizes = jnp.abs(x_0).reshape(x_0.shape[0], -1)
    limit = jnp.clip(jnp.percentile(sizes, percentile, axis=1), 1.0, cap)
    limit = limit.reshape((-1,) + (1,) * (x_0.ndim - 1))
    return jnp.clip(x_0, -limit, limit) / limit


def as_level(alpha_bar: AlphaBar) -> Level:
    """Returns signal and noise of either form of alpha_bar."""
    if isinstance(alpha_bar, Level):
        return alpha_bar
    return Level(jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar))
