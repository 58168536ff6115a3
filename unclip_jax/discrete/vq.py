"""Vector quantisation with a learned codebook (van den Oord et al., arXiv 1711.00937).

    loss = |sg(z) - e|^2 + beta |z - sg(e)|^2,    e the codebook's row nearest to z

The decoder reads e, and its gradient reaches z as if nothing lay between. The entropy term of
MaskGIT's tokenizer (arXiv 2202.04200) spreads the use of the codebook, which here is trained by
gradients alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Codebook = Float[Array, " n d"]


class QuantisedFeatures(NamedTuple):
    """Features after quantisation.

    Attributes:
        values: the nearest rows, through which gradients pass to the features.
        codes: their numbers.
        codebook_loss: mean over features of (sg(z) - e)^2, which moves the codebook.
        commitment_loss: mean of (z - sg(e))^2, which moves the encoder; times beta by the caller.
        entropy_loss: mean entropy of soft assignments less the entropy of their mean.
    """

    values: Float[Array, " b g g d"]
    codes: Int[Array, " b g g"]
    codebook_loss: Float[Array, ""]
    commitment_loss: Float[Array, ""]
    entropy_loss: Float[Array, ""]


def quantise(features: Float[Array, " b g g d"], codebook: Codebook) -> QuantisedFeatures:
    """Replaces every feature vector by the nearest row of the codebook."""
    distances = _distances(features, codebook)
    codes = jnp.argmin(distances, axis=-1)
    rows, stop = codebook[codes], jax.lax.stop_gradient
    return QuantisedFeatures(
        values=features + stop(rows - features),
        codes=codes,
        codebook_loss=jnp.mean((stop(features) - rows) ** 2),
        commitment_loss=jnp.mean((features - stop(rows)) ** 2),
        entropy_loss=_entropy_loss(-distances),
    )


def _distances(features: Float[Array, " b g g d"], codebook: Codebook) -> Float[Array, " b g g n"]:
    """Computes squared distances of every feature vector to every row."""
    products = jnp.einsum("b h w d, n d -> b h w n", features, codebook)
    rows = jnp.sum(codebook**2, axis=-1).reshape(1, 1, 1, -1)
    return jnp.sum(features**2, axis=-1, keepdims=True) + rows - 2.0 * products


def _entropy_loss(logits: Float[Array, " b g g n"]) -> Float[Array, ""]:
    log_p = jax.nn.log_softmax(logits, axis=-1)
    own = -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
    mean = jnp.mean(jnp.exp(log_p), axis=(0, 1, 2))
    return own + jnp.sum(jax.scipy.special.xlogy(mean, mean))
