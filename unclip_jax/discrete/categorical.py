"""Codes from logits: their loss, guidance, temperature, the k most probable and the nucleus.

    logits = nothing + s (condition - nothing),   s = 1: no guidance

unCLIP trains its autoregressive prior for guidance but gives no formula; this one is that of
Make-A-Scene (arXiv 2203.13131, section 3.4), in the scale convention of `diffusion.guidance`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.core import rng
from unclip_jax.core.checks import UserError, in_range
from unclip_jax.core.dynamic_fields import dynamic, is_static
from unclip_jax.core.types import Keys, Metrics, Scale

POSITION_GROUPS = 8  # runs of positions whose cross-entropy is reported
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
        top_k: only so many of the most probable codes are drawn; None = all.
    """

    guidance_scale: float = dataclasses.field(default=1.0, metadata=dynamic(off=1.0))
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self):
        in_range("sampling.guidance_scale", self.guidance_scale, 0.0, 100.0)
        in_range("sampling.temperature", self.temperature, 0.0, 100.0)
        in_range("sampling.top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise UserError("sampling.top_p is 0, which leaves no code; set temperature=0 instead.")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(
                f"sampling.top_k is {self.top_k}, which leaves no code; give 1 or more, or none "
                "for all codes."
            )


class FixedCodes(NamedTuple):
    """Codes that sampling takes over instead of drawing its own.

    Attributes:
        codes: of every row.
        mask: True where they are taken.
    """

    codes: Int[Array, " b k"]
    mask: Bool[Array, " b k"]


def sample_sequence(
    first: tuple[Array, Any],
    step: Step,
    *,
    keys: Keys,
    count: int,
    sampling: CodeSamplingConfig,
    fixed: FixedCodes | None = None,
) -> Int[Array, " b k"]:
    """Samples codes one after another, one cached step each, in one scan.

    Args:
        first: logits of code 0 and the cache; with guidance of every row twice, [conditional;
            unconditional].
        step: (code i, cache, i) -> logits of code i + 1 and the cache, of as many rows.
        keys: one per row.
        count: k, number of codes.
        sampling: settings.
        fixed: codes that are taken over; the others are drawn in order as if these had been drawn.

    Returns:
        Codes, of which row i depends on its key and condition alone.
    """
    scale = sampling.guidance_scale

    def pick(logits: Array, index: Int[Array, ""] | int) -> Int[Array, " b"]:
        if not is_static(scale, 1.0):
            logits = guided(logits, scale=scale)
        row_keys = rng.fold_each(keys, "code", index)
        options = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        code = choose(logits, row_keys, **options)
        if fixed is None:
            return code
        return jnp.where(fixed.mask[:, index], fixed.codes[:, index], code)

    def body(carry, index):
        code, cache = carry
        inputs = code if is_static(scale, 1.0) else jnp.concatenate([code, code])
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


def by_position(nats: Float[Array, " b k"]) -> Metrics:
    """Returns the cross-entropy of runs of codes, from the first to the last."""
    means, count = jnp.mean(nats, axis=0), nats.shape[1]
    cuts = sorted({count * i // POSITION_GROUPS for i in range(POSITION_GROUPS + 1)})
    runs = itertools.pairwise(cuts)
    return {f"loss_{a:03d}_{b - 1:03d}": jnp.mean(means[a:b]) for a, b in runs}


def choose(
    logits: Logits, keys: Keys, *, temperature: float, top_p: float, top_k: int | None = None
) -> Int[Array, " b"]:
    """Samples one index per row with the row's key, from the codes that both filters leave."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    logits = jnp.where(jnp.isfinite(most_probable(logits, top_k)), nucleus(logits, top_p), -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits)


def most_probable(logits: Logits, top_k: int | None) -> Logits:
    """Sets all but the `top_k` most probable entries to -inf; ties are kept."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def nucleus(logits: Logits, top_p: float) -> Logits:
    """Sets all but the fewest most probable entries that hold `top_p` to -inf; ties are kept."""
    if top_p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    shares = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


def guided(both: Float[Array, " both n"], *, scale: Scale) -> Logits:
    """Combines rows [conditional; unconditional] into guided logits."""
    conditional, unconditional = jnp.split(both, 2)
    return unconditional + scale * (conditional - unconditional)
