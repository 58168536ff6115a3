"""Categorical codes by the Gumbel-softmax relaxation, and statistics of codes (DALL-E, 2.1).

q(z | x) is categorical at every position of the grid, with the encoder's logits. Training replaces
a draw from it by y = softmax((logits + g) / tau), g standard Gumbel noise, which the decoder reads
as a convex combination of the rows of its codebook; as tau falls to 0, y becomes a one-hot draw.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.core.types import Key

Logits = Float[Array, " b g g n"]
CodeGrid = Int[Array, " b g g"]


def gumbel_softmax(
    logits: Logits, key: Key, *, temperature: Float[Array, " b"] | float
) -> Float[Array, " b g g n"]:
    """Samples relaxed codes (Jang et al., arXiv 1611.01144, equation 2).

    Args:
        logits: of q(z | x).
        key: of the Gumbel noise.
        temperature: tau, one number or one per example.
    """
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    tau = jnp.reshape(jnp.asarray(temperature, jnp.float32), (-1, 1, 1, 1))
    return jax.nn.softmax((logits + noise) / tau, axis=-1)


def kl_to_uniform(logits: Logits) -> Float[Array, " b g g"]:
    """Computes KL(q || uniform) = ln n - H(q) at every position, without the temperature.

    The paper's bound compares the encoder's categorical distribution with the prior, not its
    relaxation.
    """
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return np.log(logits.shape[-1]) + jnp.sum(jnp.exp(log_q) * log_q, axis=-1)


def annealed(
    step: Int[Array, ""] | int, *, start: float, end: float, steps: int
) -> Float[Array, ""]:
    """Returns a value that falls (or rises) from `start` to `end` on half a cosine, then stays.

    The paper names the cosine without a formula; this is that of a learning rate (section A.2).
    """
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / max(steps, 1), 1.0)
    return end + (start - end) * (1.0 + jnp.cos(jnp.pi * progress)) / 2.0


def code_statistics(codes: CodeGrid, *, count: int) -> dict[str, Float[Array, ""]]:
    """Computes "usage", the share of codes that occur, and "perplexity" of their frequencies."""
    frequencies = jnp.bincount(codes.reshape(-1), length=count) / codes.size
    entropy = -jnp.sum(jax.scipy.special.xlogy(frequencies, frequencies))
    return {"usage": jnp.mean(frequencies > 0), "perplexity": jnp.exp(entropy)}
