"""Classifier-free guidance as a wrapper of denoisers, and the drops that train for it.

    eps = eps(nothing) + s (eps(condition) - eps(nothing)),   s = 1: no guidance

Source: Ho & Salimans 2021 (arXiv 2207.12598) in GLIDE's scale convention (arXiv 2112.10741, eq. 2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.core import checks, dynamic_fields
from unclip_jax.core.types import Key, PerExample, Scale, Steps
from unclip_jax.diffusion import schedule
from unclip_jax.diffusion.guidance_schedule import GuidanceSchedule
from unclip_jax.diffusion.process import Prediction

X = Float[Array, " b *s"]
# x_t and timesteps of the trained chain -> prediction at x_t
Denoiser = Callable[[X, Steps], Prediction]


def is_off(scale: Scale | PerExample) -> bool:
    """True if the scale is 1 and known when the program is traced: one pass per step is enough."""
    return dynamic_fields.is_static(scale, 1.0)


def classifier_free(
    conditional: Prediction,
    unconditional: Prediction,
    *,
    scale: Scale | PerExample,
) -> Prediction:
    """Guides eps and x_0 alike; the variance is the conditional branch's (GLIDE).

    At one x_t the map from eps to x_0 is affine with equal coefficients in both branches, so the
    two stay consistent, and neither loses the digits that deriving it from the other would cost.

    Args:
        conditional: prediction with the condition.
        unconditional: prediction without it.
        scale: s, one for all or one per example; 1 = no guidance.
    """
    scale = jnp.asarray(scale, jnp.float32)
    if scale.ndim:
        scale = scale.reshape(scale.shape + (1,) * (conditional.eps.ndim - 1))
    eps = unconditional.eps + scale * (conditional.eps - unconditional.eps)
    x_0 = unconditional.x_0 + scale * (conditional.x_0 - unconditional.x_0)
    return Prediction(x_0, eps, conditional.var_frac)


def scale_at(guidance: GuidanceSchedule, t: Steps, *, num_timesteps: int) -> Scale | PerExample:
    """Returns the scale at timesteps `t` of a chain of `num_timesteps`."""
    if guidance.kind == "constant":
        return guidance.scale
    share = schedule.at(guidance.share(num_timesteps), t, ndim=1)
    return 1.0 + (guidance.scale - 1.0) * share


def guided(
    denoise_both: Denoiser,
    *,
    scale: Scale | PerExample,
) -> Denoiser:
    """Returns a guided denoiser from one that takes a doubled batch [conditional; unconditional].

    Args:
        denoise_both: called once per step with x_t and t repeated; its first half must see the
            condition and its second half must not.
        scale: s; 1 = no guidance.
    """

    def denoise(x_t: X, t: Steps) -> Prediction:
        both = denoise_both(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        size = x_t.shape[0]
        conditional = jax.tree.map(lambda x: x[:size], both)
        unconditional = jax.tree.map(lambda x: x[size:], both)
        return classifier_free(conditional, unconditional, scale=scale)

    return denoise


def keep_mask(key: Key, *, batch_size: int, drop: float) -> Bool[Array, " b"]:
    """Returns True where a condition is kept; each example drops it with probability `drop`.

    Raises:
        UserError: `drop` is outside [0, 1].
    """
    checks.in_range("drop", drop, 0.0, 1.0)
    return jax.random.bernoulli(key, 1.0 - drop, (batch_size,))
