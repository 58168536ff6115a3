"""Sampling from logits: guidance, temperature and the nucleus.

    logits = nothing + s (condition - nothing),   s = 1: no guidance

unCLIP trains its autoregressive prior for guidance but gives no formula; this one is that of
Make-A-Scene (arXiv 2203.13131, section 3.4), in the scale convention of `diffusion.guidance`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.types import Keys

Logits = Float[Array, " b n"]


@dataclasses.dataclass(frozen=True)
class CodeSamplingConfig:
    """The settings of sampling codes.

    Attributes:
        guidance_scale: 1.0 = no guidance.
        temperature: divides the logits; 0 = always the most probable code.
        top_p: codes outside the smallest set with this probability are never drawn; 1 = all
            (Holtzman et al. 2020, arXiv 1904.09751).
        dot_percentile: the dot product z_img . z_txt to condition on is drawn from the training
            data's own distribution above this percentile; 50 in the paper, which also tried 70, 85
            and 95.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    dot_percentile: float = 50.0

    def __post_init__(self):
        in_range("sampling.guidance_scale", self.guidance_scale, 0.0, 100.0)
        in_range("sampling.temperature", self.temperature, 0.0, 100.0)
        in_range("sampling.top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise UserError("sampling.top_p is 0, which leaves no code; set temperature=0 instead.")
        in_range("sampling.dot_percentile", self.dot_percentile, 0.0, 99.9)


def choose(logits: Logits, keys: Keys, *, temperature: float, top_p: float) -> Int[Array, " b"]:
    """Samples one index per row with the row's key."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = nucleus(logits / temperature, top_p)
    return jax.vmap(jax.random.categorical)(keys, logits)


def nucleus(logits: Logits, top_p: float) -> Logits:
    """Sets all but the fewest most probable entries that hold `top_p` to -inf; ties are kept."""
    if top_p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    shares = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def guided(both: Float[Array, " both n"], *, scale: float) -> Logits:
    """Combines rows [conditional; unconditional] into guided logits."""
    conditional, unconditional = jnp.split(both, 2)
    return unconditional + scale * (conditional - unconditional)
