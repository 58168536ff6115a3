"""Sampling from logits: guidance, temperature and the nucleus.

    logits = nothing + s (condition - nothing),   s = 1: no guidance

unCLIP trains its autoregressive prior for guidance but gives no formula; this one is that of
Make-A-Scene (arXiv 2203.13131, section 3.4), in the scale convention of `diffusion.guidance`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.types import Keys

Logits = Float[Array, " b n"]
Step = Callable[[Int[Array, " both"], Any, Int[Array, ""]], tuple[Array, Any]]


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


def sample_sequence(
    first: tuple[Array, Any],
    step: Step,
    *,
    keys: Keys,
    count: int,
    sampling: CodeSamplingConfig,
) -> Int[Array, " b k"]:
    """Samples codes one after another, one cached step each, in one scan.

    Args:
        first: logits of code 0 and the cache; with guidance of every row twice, [conditional;
            unconditional].
        step: (code i, cache, i) -> logits of code i + 1 and the cache, of as many rows.
        keys: one per row.
        count: k, number of codes.
        sampling: settings.

    Returns:
        Codes, of which row i depends on its key and condition alone.
    """
    scale = sampling.guidance_scale

    def pick(logits: Array, index: Int[Array, ""] | int) -> Int[Array, " b"]:
        if scale != 1.0:
            logits = guided(logits, scale=scale)
        row_keys = rng.fold_each(keys, "code", index)
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return choose(logits, row_keys, **options)

    def body(carry, index):
        code, cache = carry
        inputs = code if scale == 1.0 else jnp.concatenate([code, code])
        logits, cache = step(inputs, cache, index)
        code = pick(logits, index + 1)
        return (code, cache), code

    logits, cache = first
    code = pick(logits, 0)
    _, others = jax.lax.scan(body, (code, cache), jnp.arange(count - 1))
    return jnp.concatenate([code[:, None], others.T], axis=1)


def cross_entropy(logits: Float[Array, " b k n"], codes: Int[Array, " b k"]) -> Array:
    """Returns the nats of each code, [b k]."""
    picked = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


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
