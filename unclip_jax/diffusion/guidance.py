"""Classifier-free guidance as a wrapper of denoisers, and the drops that train for it.

    eps = eps(nothing) + s (eps(condition) - eps(nothing)),   s = 1: no guidance

Source: Ho & Salimans 2021 (arXiv 2207.12598) in GLIDE's scale convention (arXiv 2112.10741, eq. 2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from unclip_jax.core import checks
from unclip_jax.core.types import Key, Steps
from unclip_jax.diffusion.process import AlphaBar, Prediction
from unclip_jax.diffusion.schedule import Schedule

X = Float[Array, " b *s"]
# x_t and original timesteps -> what the model says about x_t
Denoiser = Callable[[X, Steps], Prediction]


def classifier_free(
    conditional: Prediction,
    unconditional: Prediction,
    *,
    scale: float | Float[Array, ""] | Float[Array, " b"],
    x_t: X,
    alpha_bar: AlphaBar,
) -> Prediction:
    """Guide eps; x_0 follows from it, and the variance is the conditional branch's (GLIDE).

    Args:
        conditional: prediction with the condition.
        unconditional: prediction without it.
        scale: s, one for all or one per example; 1 = no guidance.
        x_t: the noised sample that both saw.
        alpha_bar: its noise level.
    """
    scale = jnp.asarray(scale, jnp.float32)
    if scale.ndim:
        scale = scale.reshape(scale.shape + (1,) * (x_t.ndim - 1))
    eps = unconditional.eps + scale * (conditional.eps - unconditional.eps)
    # near t = 0 eps loses x_0 and near t = T the other way round, so both are guided directly;
    # the map between them is affine with equal coefficients in both branches
    x_0 = unconditional.x_0 + scale * (conditional.x_0 - unconditional.x_0)
    return Prediction(x_0, eps, conditional.var_frac)


def guided(
    denoise_both: Denoiser,
    *,
    scale: float | Float[Array, ""] | Float[Array, " b"],
    schedule: Schedule,
) -> Denoiser:
    """A guided denoiser from one that takes a doubled batch [conditional; unconditional].

    Args:
        denoise_both: called once per step with x_t and t repeated; its first half must see the
            condition and its second half must not.
        scale: s; 1 = no guidance.
        schedule: the full chain, which original timesteps index.
    """

    def denoise(x_t: X, t: Steps) -> Prediction:
        both = denoise_both(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
        size = x_t.shape[0]
        conditional = jax.tree.map(lambda x: x[:size], both)
        unconditional = jax.tree.map(lambda x: x[size:], both)
        level = schedule.level(t, ndim=x_t.ndim)
        return classifier_free(conditional, unconditional, scale=scale, x_t=x_t, alpha_bar=level)

    return denoise


def keep_mask(key: Key, *, batch_size: int, drop: float) -> Bool[Array, " b"]:
    """True where a condition is kept; each example drops it with probability `drop`.

    Raises:
        UserError: `drop` is outside [0, 1].
    """
    checks.in_range("drop", drop, 0.0, 1.0)
    return jax.random.bernoulli(key, 1.0 - drop, (batch_size,))
